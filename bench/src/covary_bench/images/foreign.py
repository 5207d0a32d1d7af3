"""Foreign images for networks without a backdoor: what is at hand, and OpenOOD's sets where they are on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from covary.errors import CovaryError, unknown_name
from covary_bench.images import datasets
from covary_bench.images.datasets import NO_CLASS, Images, data_folder

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Foreign:
    """A set of foreign images: how they are read, and whether they are near the clean ones or far."""

    read: Callable[[], Images]
    distance: Literal["near", "far"]


def openood(name: str) -> Callable[[], Images]:
    """The test images of one set of OpenOOD's CIFAR-10 benchmark (Zhang et al. 2023, arXiv 2306.09301).

    Reads $COVARY_OPENOOD or `openood` in the data folder, laid out as its download script leaves it:
    `benchmark_imglist/cifar10/test_NAME.txt` with lines `path label` under `images_classic/`.
    """

    def read() -> Images:
        home = Path(os.environ.get("COVARY_OPENOOD") or data_folder() / "openood")
        listing = home / "benchmark_imglist" / "cifar10" / f"test_{name}.txt"
        if not listing.is_file():
            raise CovaryError(
                f"no file {listing}", "OpenOOD's sets", "set COVARY_OPENOOD to the folder that holds them"
            )
        paths = [line.rsplit(" ", 1)[0] for line in listing.read_text().splitlines() if line.strip()]
        x = np.stack([_image(home / "images_classic" / path) for path in paths])
        return Images(x, np.full(len(x), NO_CLASS), paths)

    return read


def _image(path: Path, side: int = 32) -> UInt8[np.ndarray, "side side 3"]:
    # As the protocol does: the shorter side to 32, then the middle.
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
        scale = side / min(picture.size)
        size = (max(side, round(picture.width * scale)), max(side, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        return np.asarray(picture.crop((left, top, left + side, top + side)))


def photo_patches() -> Images:
    """Patches of 32x32 pixels out of scikit-learn's two sample photos."""
    from sklearn.datasets import load_sample_images

    found: Any = load_sample_images()
    patches = []
    for photo in found.images:
        rows, columns = photo.shape[0] // 32, photo.shape[1] // 32
        cut = photo[: rows * 32, : columns * 32].reshape(rows, 32, columns, 32, 3).swapaxes(1, 2)
        patches.append(cut.reshape(-1, 32, 32, 3))
    x = np.concatenate(patches).astype(np.uint8)
    return Images(x, np.full(len(x), NO_CLASS), [f"patch-{i:04d}" for i in range(len(x))])


def _named(name: str) -> Callable[[], Images]:
    return lambda: datasets.load(name)


# name -> reader; adding a set is one line. `photos` leaves out what shows CIFAR-10's classes, by a committed list.
FOREIGN: dict[str, Foreign] = {
    "mnist": Foreign(_named("mnist-test"), "far"),
    "signs": Foreign(_named("gtsrb-test"), "far"),
    "photos": Foreign(_named("photos"), "near"),
    "patches": Foreign(photo_patches, "far"),
    "openood-cifar100": Foreign(openood("cifar100"), "near"),
    "openood-tin": Foreign(openood("tin"), "near"),
    "openood-mnist": Foreign(openood("mnist"), "far"),
    "openood-svhn": Foreign(openood("svhn"), "far"),
    "openood-texture": Foreign(openood("texture"), "far"),
    "openood-places365": Foreign(openood("places365"), "far"),
}


def load(name: str, shape: Shape) -> Images:
    """The foreign images of that name at height, width and channels `shape`, labelled `NO_CLASS`."""
    if name not in FOREIGN:
        raise unknown_name("foreign set", name, FOREIGN)
    images = FOREIGN[name].read()
    x = fitted(images.x, shape)
    return Images(x, np.full(len(x), NO_CLASS), images.id)


def fitted(x: UInt8[np.ndarray, "n a b d"], shape: Shape) -> UInt8[np.ndarray, "n h w c"]:
    """Grey to RGB or back by the mean of channels, 28-pixel digits in a black frame, other sizes resampled."""
    height, width, channels = shape
    if x.shape[3] != channels:
        x = np.repeat(x, channels, axis=3) if x.shape[3] == 1 else np.round(x.mean(3, keepdims=True)).astype(np.uint8)
    if x.shape[1:3] == (28, 28) and (height, width) == (32, 32):
        return np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    if x.shape[1:3] == (height, width):
        return x
    grey = channels == 1
    pictures = [Image.fromarray(image[..., 0] if grey else image).resize((width, height)) for image in x]
    return np.stack([np.asarray(picture) for picture in pictures]).reshape(-1, height, width, channels)
