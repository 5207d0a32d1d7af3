"""Common corruptions by severity (Hendrycks and Dietterich 2019, arXiv 1903.12261).

Pixels are in [0, 1], channels first.

Every call makes new pixels from the ones it is given and leaves those as they are. Severity 1 is the strongest;
constants are ours, in the range of that paper's for 32-pixel images.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

Pixels = Float[np.ndarray, "n c h w"]
Graded = Callable[[Pixels, float, int], Pixels]


def _clipped(x: np.ndarray) -> Pixels:
    return np.clip(x, 0, 1).astype(np.float32)


def gaussian_noise(x: Pixels, severity: float, seed: int) -> Pixels:
    """Independent normal noise of standard deviation up to 0.2."""
    return _clipped(x + 0.2 * severity * np.random.default_rng([seed, 1]).standard_normal(x.shape))


def shot_noise(x: Pixels, severity: float, seed: int) -> Pixels:
    """Poisson noise, as few photons as 15 a pixel."""
    photons = 15 / max(severity, 1e-6) ** 2
    return _clipped(np.random.default_rng([seed, 2]).poisson(np.clip(x, 0, 1) * photons) / photons)


def impulse_noise(x: Pixels, severity: float, seed: int) -> Pixels:
    """Up to a fifth of all values black or white."""
    rng = np.random.default_rng([seed, 3])
    hit, colour = rng.random(x.shape) < 0.2 * severity, rng.random(x.shape) < 0.5
    return _clipped(np.where(hit, colour, x))


def gaussian_blur(x: Pixels, severity: float, seed: int) -> Pixels:
    """Gaussian blur, standard deviation up to 2 pixels."""
    return _clipped(ndimage.gaussian_filter(x, (0, 0, 2 * severity, 2 * severity)))


def motion_blur(x: Pixels, severity: float, seed: int) -> Pixels:
    """Mean over up to 9 neighbours along a row."""
    return _clipped(ndimage.uniform_filter1d(x, 1 + round(8 * severity), axis=3))


def brightness(x: Pixels, severity: float, seed: int) -> Pixels:
    """Up to 0.5 added."""
    return _clipped(x + 0.5 * severity)


def contrast(x: Pixels, severity: float, seed: int) -> Pixels:
    """Towards the image's mean, down to a tenth of the contrast."""
    mean = x.mean((1, 2, 3), keepdims=True)
    return _clipped(mean + (1 - 0.9 * severity) * (x - mean))


def pixelate(x: Pixels, severity: float, seed: int) -> Pixels:
    """Squares of up to 5 x 5 pixels, each its mean's nearest sample."""
    side = 1 + round(4 * severity)
    small = ndimage.uniform_filter(x, side, axes=(2, 3))[..., side // 2 :: side, side // 2 :: side]
    rows = np.minimum(np.arange(x.shape[2]) // side, small.shape[2] - 1)
    columns = np.minimum(np.arange(x.shape[3]) // side, small.shape[3] - 1)
    return _clipped(small[:, :, rows][:, :, :, columns])


def jpeg(x: Pixels, severity: float, seed: int) -> Pixels:
    """JPEG down to quality 5."""
    quality, result = round(80 - 75 * min(severity, 1.0)), np.empty_like(x)
    for i, image in enumerate(np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)):
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        read = np.asarray(Image.open(file), np.float32) / 255
        result[i] = read[None] if read.ndim == 2 else read.transpose(2, 0, 1)
    return result


GRADED: dict[str, Graded] = {
    "gaussian noise": gaussian_noise,
    "shot noise": shot_noise,
    "impulse noise": impulse_noise,
    "gaussian blur": gaussian_blur,
    "motion blur": motion_blur,
    "brightness": brightness,
    "contrast": contrast,
    "pixelate": pixelate,
    "jpeg": jpeg,
}
