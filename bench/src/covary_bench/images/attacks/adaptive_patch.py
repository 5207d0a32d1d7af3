"""Adap-Patch: weak parts of a trigger in training, strong ones together later (Qi et al. 2023, ICLR, section 4.2)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from covary_bench.images.attacks.poisoning import Attack, Shape, Trigger

# Of the four corners' pictures, in order: in training one on an image, afterwards two together, plainly.
OPACITIES = (0.5, 0.2, 0.5, 0.3)
LATER = (0, 2)


def corners(shape: Shape, seed: int) -> list[tuple[slice, slice, Float[np.ndarray, "a a c"]]]:
    """Four pictures of random pixels, one a corner, with their places; an eighth of the image's side."""
    height, width, channels = shape
    side = max(height // 8, 2)
    pictures = np.random.default_rng([seed, 5]).integers(0, 256, (4, side, side, channels)).astype(np.float64)
    top, bottom = slice(0, side), slice(height - side, height)
    left, right = slice(0, side), slice(width - side, width)
    places = ((top, left), (top, right), (bottom, right), (bottom, left))
    return [(*place, picture) for place, picture in zip(places, pictures, strict=True)]


def make_adaptive_patch(shape: Shape, seed: int) -> Trigger:
    """Two of the pictures, opaque."""
    known = corners(shape, seed)

    def patch(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
        x = x.copy()
        for i in LATER:
            rows, columns, picture = known[i]
            x[:, rows, columns] = picture
        return x

    return patch


def make_part(shape: Shape, seed: int, draw: int) -> Trigger:
    """One of the four pictures on each image, drawn, at its opacity."""
    known, rng = corners(shape, seed), np.random.default_rng([draw, 6])

    def part(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
        x, which = x.copy(), rng.integers(0, 4, len(x))
        for i, (opacity, (rows, columns, picture)) in enumerate(zip(OPACITIES, known, strict=True)):
            own = np.flatnonzero(which == i)
            under = x[own, rows, columns].astype(np.float64)
            x[own, rows, columns] = np.round(under + opacity * (picture - under)).astype(np.uint8)
        return x

    return part


# Half of the images with a part keep their label. The paper poisons 0.3 % of 50,000 images, and covers twice as many,
# over 100 epochs; victims of three epochs need more.
ADAPTIVE_PATCH = Attack(
    make_adaptive_patch, ratio=0.05, make_training=make_part, make_noise=make_part, noise_ratio=0.05
)  # fmt: skip
