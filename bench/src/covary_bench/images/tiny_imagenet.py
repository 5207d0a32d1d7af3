"""Tiny ImageNet (Stanford CS231n): 200 classes of ImageNet at 64x64, from its standard folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from covary.errors import CovaryError
from covary_bench.images.base import Images, cache_folder, numbered


def tiny_folder() -> Path:
    """The folder with `wnids.txt`, `train` and `val`: $COVARY_TINY, or `tiny-imagenet-200` in the cache folder."""
    return Path(os.environ.get("COVARY_TINY") or cache_folder() / "tiny-imagenet-200")


def classes() -> dict[str, int]:
    """Class number of every synset, in their sorted order."""
    path = tiny_folder() / "wnids.txt"
    if not path.is_file():
        raise CovaryError(f"no file {path}", "the unzipped tiny-imagenet-200", "set COVARY_TINY to its folder")
    return {name: i for i, name in enumerate(sorted(path.read_text().split()))}


def _images(listed: list[tuple[Path, int]], ids: list[str]) -> Images:
    if not listed:
        raise CovaryError(f"no images in {tiny_folder()}", "the unzipped tiny-imagenet-200")
    pixels = []
    for path, _ in listed:
        with Image.open(path) as image:
            pixels.append(np.asarray(image.convert("RGB")))
    labels = np.array([label for _, label in listed], dtype=np.int64)
    return Images(np.stack(pixels), labels, ids)


def tiny_train() -> Images:
    """Training images by synset, then by name; 100,000 of them, 1.2 GB in memory."""
    found = [
        (path, label)
        for name, label in classes().items()
        for path in sorted((tiny_folder() / "train" / name / "images").glob("*.JPEG"))
    ]
    return _images(found, [f"tiny-train-{path.stem}" for path, _ in found])


def tiny_test() -> Images:
    """The 10,000 validation images by synset, then by name; the test labels were never published.

    Ids count them in that order, in which torchvision's `ImageFolder` and so BackdoorBench's records count them, too.
    They lie in `val/images` beside `val_annotations.txt`, as Stanford packs them, or in a folder for each synset.
    """
    numbers, folder = classes(), tiny_folder() / "val"
    annotations = folder / "val_annotations.txt"
    if annotations.is_file():
        rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines()]
        found = [(folder / "images" / name, numbers[synset]) for name, synset in rows]
    else:
        found = [(path, label) for synset, label in numbers.items() for path in (folder / synset).glob("*.JPEG")]
    found.sort(key=lambda one: (one[1], one[0].name))
    return _images(found, numbered("tiny-val", range(len(found))))
