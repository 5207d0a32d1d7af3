"""Writes records in BackdoorBench's format, for tests and for handing our victims to other people's tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from covary.storage import folders
from covary_bench.images.backdoorbench.records import FILE


def write_record(
    folder: Path,
    *,
    model_name: str,
    model: Mapping[str, Tensor],
    num_classes: int,
    clean_data: str,
    clean_size: int,
    rows: Int[np.ndarray, " n"],
    images: UInt8[np.ndarray, "n h w c"],
    poisoned: Int[np.ndarray, " n"],
    original: Int[np.ndarray, " n"],
    in_memory: bool = False,
) -> Path:
    """Writes the record of a network and its triggered test images; whole or not at all.

    Args:
        clean_size: number of images in the clean test set that `rows` count in.
        in_memory: keep the images inside the file instead of beside it.
    """
    with folders.atomic_folder(folder, "record") as part:
        _write(
            part, folder.name, in_memory, clean_size, rows, images, poisoned, original,
            {"model_name": model_name, "num_classes": num_classes, "model": dict(model), "clean_data": clean_data},
        )  # fmt: skip
    return folder


def _write(
    part: Path,
    name: str,
    in_memory: bool,
    clean_size: int,
    rows: Int[np.ndarray, " n"],
    images: UInt8[np.ndarray, "n h w c"],
    poisoned: Int[np.ndarray, " n"],
    original: Int[np.ndarray, " n"],
    facts: dict[str, Any],
) -> None:
    data: dict[Any, Any] = {}
    recorded = f"./record/{name}/bd_test_dataset"
    for row, image, label, own in zip(rows, images, poisoned.tolist(), original.tolist(), strict=True):
        picture = Image.fromarray(image)
        if in_memory:
            data[row] = (picture, label, own)
            continue
        path = part / "bd_test_dataset" / str(own) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        data[row] = {"path": f"{recorded}/{own}/{row}.png", "other_info": [label, own]}
    indicator = np.zeros(clean_size)
    indicator[rows] = 1
    state = {
        "bd_data_container": {
            "save_folder_path": None if in_memory else recorded, "data_dict": data, "save_file_format": ".png",
        },
        "getitem_all": True, "getitem_all_switch": False, "original_index_array": np.sort(rows),
        "poison_indicator": indicator, "save_folder_path": None if in_memory else recorded,
    }  # fmt: skip
    sizes = {"data_path": f"./data/{facts['clean_data']}", "img_size": list(images.shape[1:])}
    torch.save({**facts, **sizes, "bd_train": None, "bd_test": state}, part / FILE)
