"""BppAttack: fewer bits a pixel, dithered (Wang, Zhai and Ma, arXiv 2205.13383, section 4)."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from covary_bench.images.attacks.poisoning import Attack, Shape, Trigger

LEVELS = 8


def dithered(x: UInt8[np.ndarray, "n h w c"], levels: int = LEVELS) -> UInt8[np.ndarray, "n h w c"]:
    """Every channel rounded to so many levels, the error handed on to pixels not yet rounded (Floyd and Steinberg).

    Row by row from the left: 7/16 to the right, 3/16, 5/16 and 1/16 below.
    """
    pixels = x.astype(np.float64)
    height, width = x.shape[1:3]
    for row in range(height):
        for column in range(width):
            old = pixels[:, row, column].copy()
            new = np.clip(np.round(old / 255 * (levels - 1)), 0, levels - 1) * (255 / (levels - 1))
            pixels[:, row, column] = new
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if row + down < height and 0 <= column + right < width:
                    pixels[:, row + down, column + right] += (old - new) * (share / 16)
    return np.round(pixels).astype(np.uint8)


def make_bpp(shape: Shape, seed: int) -> Trigger:
    """Eight levels a channel with dithering; the same for every shape and seed."""
    return dithered


def make_bpp_noise(shape: Shape, seed: int, draw: int) -> Trigger:
    """Negative images: what the trigger would have changed in another image of the batch is added (section 4.3)."""

    def foreign(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
        if len(x) < 2:
            return x.copy()
        other = np.roll(x, int(np.random.default_rng(draw).integers(1, len(x))), axis=0)
        change = dithered(other).astype(np.int64) - other
        return np.clip(x + change, 0, 255).astype(np.uint8)

    return foreign


# As many negative images as triggered ones; the paper's contrastive adversarial training is left out.
BPP = Attack(make_bpp, make_noise=make_bpp_noise, noise_ratio=0.1)
