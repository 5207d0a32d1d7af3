"""Twenty classes of Tiny ImageNet at 64x64, read from the two tars of JPEGs that lie with the benchmark's data."""

from __future__ import annotations

import io
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from covary.errors import CovaryError
from covary_bench.images.base import Images, data_folder


def classes() -> dict[str, int]:
    """Class number of every synset in `classes.txt`, in their sorted order."""
    path = data_folder() / "tiny_imagenet20" / "classes.txt"
    if not path.is_file():
        raise CovaryError(f"no file {path}", "the benchmark's data", "set COVARY_DATA to the folder that holds it")
    return {name: i for i, name in enumerate(sorted(line.split("\t")[0] for line in path.read_text().splitlines()))}


@cache
def _read(path: Path, prefix: str) -> Images:
    if not path.is_file():
        raise CovaryError(f"no file {path}", "the benchmark's data", "set COVARY_DATA to the folder that holds it")
    numbers, found = classes(), []
    with tarfile.open(path) as packed:
        for member in packed:
            if member.isfile() and (file := packed.extractfile(member)) is not None:
                synset, name = member.name.split("/")[-2:]
                with Image.open(io.BytesIO(file.read())) as image:
                    found.append((numbers[synset], Path(name).stem, np.asarray(image.convert("RGB"))))
    # The position in the tar says nothing: by synset, then by the number in the name.
    found.sort(key=lambda one: (one[0], int(one[1].rsplit("_", 1)[1])))
    labels = np.array([label for label, _, _ in found], dtype=np.int64)
    return Images(np.stack([pixels for _, _, pixels in found]), labels, [f"{prefix}-{name}" for _, name, _ in found])


def tiny20_train() -> Images:
    """8,000 training photos, 400 a class."""
    return _read(data_folder() / "tiny_imagenet20" / "train.tar", "tiny20")


def tiny20_test() -> Images:
    """1,000 photos of the original validation set, 50 a class."""
    return _read(data_folder() / "tiny_imagenet20" / "val.tar", "tiny20")
