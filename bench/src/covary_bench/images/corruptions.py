"""Benign but hard inputs: what a camera or a lens does to an image. Every call starts from fresh copies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

Corruption = Callable[[UInt8[np.ndarray, "n h w c"], int], UInt8[np.ndarray, "n h w c"]]


def gaussian_noise(x: UInt8[np.ndarray, "n h w c"], seed: int, deviation: float = 0.1) -> UInt8[np.ndarray, "n h w c"]:
    """Independent normal noise, `deviation` on the scale of [0, 1], clipped and rounded to 8 bits."""
    noise = np.random.default_rng(seed).standard_normal(x.shape)
    return np.round(np.clip(x + 255 * deviation * noise, 0, 255)).astype(np.uint8)


def gaussian_blur(x: UInt8[np.ndarray, "n h w c"], seed: int, radius: float = 1.0) -> UInt8[np.ndarray, "n h w c"]:
    """Gaussian blur with a standard deviation of `radius` pixels (Pillow's box approximation); `seed` has no effect."""

    def blur(image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
        grey = image.shape[-1] == 1
        blurred = Image.fromarray(image[..., 0] if grey else image).filter(ImageFilter.GaussianBlur(radius))
        return np.asarray(blurred).reshape(image.shape)

    return np.stack([blur(image) for image in x]) if len(x) else x.copy()


CORRUPTIONS: dict[str, Corruption] = {"noise": gaussian_noise, "blur": gaussian_blur}
