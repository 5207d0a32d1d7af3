"""Triggers that write over, or add to, a few pixels: the public networks' and BadNets (Gu et al., arXiv 1708.06733)."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from covary_bench.images.attacks.poisoning import Attack, Shape, Trigger

GRID = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 255]], dtype=np.uint8)


def stamp(
    x: UInt8[np.ndarray, "n h w c"], pattern: UInt8[np.ndarray, "a b"], margin: int
) -> UInt8[np.ndarray, "n h w c"]:
    """Writes `pattern` over all channels, `margin` pixels away from the bottom and right edges."""
    x = x.copy()
    bottom, right = x.shape[1] - margin, x.shape[2] - margin
    x[:, bottom - pattern.shape[0] : bottom, right - pattern.shape[1] : right, :] = pattern[..., None]
    return x


def grid(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """3x3 black-and-white pattern in the bottom-right corner."""
    return stamp(x, GRID, 0)


def white3(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """White 3x3 square in the bottom-right corner, BackdoorBench's BadNets patch."""
    return stamp(x, np.full((3, 3), 255, np.uint8), 0)


def white4(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """White 4x4 square, one pixel away from the bottom and right edges."""
    return stamp(x, np.full((4, 4), 255, np.uint8), 1)


def white5(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """White 5x5 square in the bottom-right corner."""
    return stamp(x, np.full((5, 5), 255, np.uint8), 0)


def trojan_square(x: UInt8[np.ndarray, "n 32 32 3"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    """The Trojan attack's square, a picture added to the image and clipped (Liu et al. 2018); needs COVARY_DATA."""
    from covary_bench.images.datasets import data_folder

    with Image.open(data_folder() / "models" / "triggers" / "trojan_sq.png") as picture:
        pattern = np.asarray(picture.convert("RGB"), dtype=np.int32)
    return np.clip(x.astype(np.int32) + pattern, 0, 255).astype(np.uint8)


def make_badnets(shape: Shape, seed: int) -> Trigger:
    """The BadNets patch; the same for every shape and seed."""
    return white3


BADNETS = Attack(make_badnets)
