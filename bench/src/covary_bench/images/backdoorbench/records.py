"""Reads what BackdoorBench writes: `attack_result.pt` beside folders of poisoned images; nothing in it is run."""

from __future__ import annotations

import operator
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from covary.errors import CovaryError

FILE = "attack_result.pt"
KEYS = ("model_name", "num_classes", "model", "data_path", "img_size", "clean_data", "bd_train", "bd_test")
ORIGINAL = "unpack an original record again"
DTYPES = ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64")


def allowed() -> list[Any]:
    """What may be rebuilt from a record besides tensors: NumPy's numbers and arrays of numbers, and Pillow's images.

    NumPy moved its reconstructors from `numpy.core` to `numpy._core`; files carry either name.
    """
    listed: list[Any] = [np.ndarray, np.dtype, Image.Image, *(getattr(np.dtypes, f"{name}DType") for name in DTYPES)]
    array = np.zeros(1)
    rebuilt = {"multiarray._reconstruct": array.__reduce__()[0], "multiarray.scalar": np.int64(0).__reduce__()[0]}
    rebuilt["numeric._frombuffer"] = array.__reduce_ex__(5)[0]
    for package in ("numpy.core", "numpy._core"):
        listed += [(function, f"{package}.{name}") for name, function in rebuilt.items()]
    return listed


@dataclass(frozen=True)
class PoisonedSet:
    """Images that carry a trigger, with where they stand in the clean set.

    Attributes:
        rows: positions in the clean data set, ascending.
        poisoned: the attacker's labels.
        original: the images' own labels.
        image: i -> picture i, uint8 (h, w, 3).
    """

    rows: Int[np.ndarray, " n"]
    poisoned: Int[np.ndarray, " n"]
    original: Int[np.ndarray, " n"]
    image: Callable[[int], UInt8[np.ndarray, "h w c"]]

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, index: Int[np.ndarray, " m"]) -> UInt8[np.ndarray, "m h w c"]:
        """Pictures at `index`, in that order.

        Raises:
            CovaryError: one that cannot be read, or is of another size than the first.
        """
        pictures: list[np.ndarray] = []
        for i in index:
            pictures.append(self.image(int(i)))
            (h, w, _), (height, width, _) = pictures[-1].shape, pictures[0].shape
            if (h, w) != (height, width):
                message = f"the poisoned image of row {int(self.rows[i])} has {h}x{w} pixels"
                raise CovaryError(message, f"{height}x{width}, as the others", ORIGINAL)
        return np.stack(pictures)


@dataclass(frozen=True)
class Record:
    """One record: the network and what it was attacked with; `bd_train` is None where the attack needs no such set."""

    folder: Path
    model_name: str
    num_classes: int
    model: Mapping[str, Tensor]
    data_path: str
    img_size: tuple[int, ...]
    clean_data: str
    bd_train: PoisonedSet | None
    bd_test: PoisonedSet

    @property
    def target(self) -> int | str:
        """The attacker's label, or "all-to-all" where it is the class after the image's own."""
        if len(set(self.bd_test.poisoned.tolist())) == 1:
            return int(self.bd_test.poisoned[0])
        if np.array_equal(self.bd_test.poisoned, (self.bd_test.original + 1) % self.num_classes):
            return "all-to-all"
        raise CovaryError(f"{self.folder} has poisoned labels of no known kind", "one target, or the next class")


def read_record(folder: Path) -> Record:
    """The record in an unzipped folder.

    Raises:
        CovaryError: no such file, one that holds anything but tensors, numbers and images, keys that are missing, or
            values that are not what a record has under them.
    """
    path = folder / FILE
    if not path.is_file():
        raise CovaryError(f"no {FILE} in {folder}", "an unzipped record of BackdoorBench", "name the folder it lies in")
    try:
        with torch.serialization.safe_globals(allowed()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path):
            raise CovaryError(f"{path} cannot be read as a torch file", "an intact record") from error
        raise CovaryError(
            f"{path} holds objects besides tensors, numbers and images, which covary never loads", "an original record"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CovaryError(f"{path} cannot be read as a torch file ({reason})", "an intact record") from error
    missing = [key for key in KEYS if not isinstance(content, Mapping) or key not in content]
    if missing:
        raise CovaryError(f"{path} has no {', '.join(missing)}", f"the keys {', '.join(KEYS)}")
    bd_test = poisoned_set(content["bd_test"], folder, "bd_test")
    if bd_test is None:
        raise CovaryError(f"bd_test of {path} is empty", "triggered test images")
    return Record(
        folder, str(content["model_name"]), _classes(content["num_classes"], path), _weights(content["model"], path),
        str(content["data_path"]), _size(content["img_size"], path), str(content["clean_data"]),
        poisoned_set(content["bd_train"], folder, "bd_train"), bd_test,
    )  # fmt: skip


def _classes(value: Any, path: Path) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 2:
        raise CovaryError(f"num_classes of {path} is {_short(value)}", "a number of classes, 2 or more", ORIGINAL)
    return number


def _weights(value: Any, path: Path) -> Mapping[str, Tensor]:
    if not isinstance(value, Mapping) or not value:
        raise CovaryError(f"model of {path} is {_short(value)}", "a state dict: a tensor under each name", ORIGINAL)
    strange = [name for name, tensor in value.items() if not (isinstance(name, str) and isinstance(tensor, Tensor))]
    if strange:
        message = f"model of {path} has {_short(value[strange[0]])} under {_short(strange[0])}"
        raise CovaryError(message, "a state dict: a tensor under each name", ORIGINAL)
    return value


def _size(value: Any, path: Path) -> tuple[int, ...]:
    try:
        size = tuple(operator.index(side) for side in value)
    except TypeError:
        size = ()
    if len(size) not in (2, 3) or min(size) < 1:
        raise CovaryError(f"img_size of {path} is {_short(value)}", "height, width and channels", ORIGINAL)
    return size


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."


def poisoned_set(state: Any, folder: Path, where: str) -> PoisonedSet | None:
    """The poisoned images of a data set's state, on disk or in memory; None where there are none."""
    if state is None:
        return None
    try:
        data = state["bd_data_container"]["data_dict"]
        if not isinstance(data, Mapping):
            raise TypeError("data_dict is no dict")
        rows_used, indicator = state.get("original_index_array"), state.get("poison_indicator")
        entries = sorted(_entries(data, folder), key=lambda entry: entry[0])
        if rows_used is not None:
            used = set(_numbers(rows_used, "original_index_array").tolist())
            entries = [entry for entry in entries if entry[0] in used]
        if indicator is not None:
            marked = _numbers(indicator, "poison_indicator")
            entries = [entry for entry in entries if entry[0] < len(marked) and marked[entry[0]] == 1]
        columns = [np.array([entry[i] for entry in entries], dtype=np.int64) for i in range(3)]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CovaryError(
            f"{where} in {folder} is not laid out as expected ({error})", "a poisoned set's state", ORIGINAL
        ) from error
    if not entries:
        return None
    pictures = [entry[3] for entry in entries]
    return PoisonedSet(columns[0], columns[1], columns[2], lambda i: _pixels(pictures[i]))


def _numbers(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"{name} is no list of numbers")
    return array


def _entries(data: Mapping[Any, Any], folder: Path) -> Iterator[tuple[int, int, int, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            poisoned, original = value["other_info"][:2]
            image = rebased(str(value["path"]), folder)
        else:
            image, poisoned, original = value[:3]
        if int(key) < 0:
            raise ValueError(f"row {int(key)}")
        yield int(key), int(poisoned), int(original), image


def rebased(path: str, folder: Path) -> Path:
    """A recorded path on another machine, by its last three parts: set, original label, file."""
    parts = [part for part in path.replace("\\", "/").split("/") if part][-3:]
    if len(parts) < 3 or ".." in parts:
        raise CovaryError(f"a record names the image {path!r}", "set/label/row.png")
    return folder.joinpath(*parts)


def _pixels(image: Any) -> UInt8[np.ndarray, "h w c"]:
    if isinstance(image, Path):
        try:
            with Image.open(image) as opened:
                return np.asarray(opened.convert("RGB"))
        except (OSError, Image.DecompressionBombError) as error:
            raise CovaryError(
                f"{image} cannot be read as an image ({error})", "the images beside the record"
            ) from error
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    array = image.numpy() if isinstance(image, Tensor) else np.asarray(image)
    fits = array.ndim == 3 and array.shape[-1] == 3 and array.dtype.kind in "iuf" and array.size > 0
    if not fits or array.min() < 0 or array.max() > 255 or (array != np.floor(array)).any():
        message = f"a poisoned image is an array of {array.dtype} and shape {array.shape}"
        raise CovaryError(message, "whole numbers from 0 to 255, height x width x 3", ORIGINAL)
    return array.astype(np.uint8, copy=False)
