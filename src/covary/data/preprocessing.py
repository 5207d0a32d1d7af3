"""From raw samples to what the network takes: scaling, transform, mean and standard deviation; and back to pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image

from covary.data.presets import ImageTransform
from covary.errors import CovaryError
from covary.objects import load_object

THUMBNAIL = 64
# Pixels of these dtypes become floats in [0, 1].
LARGEST = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


def scaled(raw: Shaped[np.ndarray, "..."]) -> torch.Tensor:
    """Raw samples (n, ...) as a tensor; images of integers (n, h, w, c) or (n, h, w) become (n, c, h, w) in [0, 1]."""
    raw = np.ascontiguousarray(raw)
    largest = LARGEST.get(raw.dtype)
    # torch has no arithmetic on uint16.
    raw = raw.astype(np.int32) if raw.dtype == np.uint16 else raw
    x = torch.from_numpy(raw if raw.flags.writeable else raw.copy())
    if largest is None:
        return x
    x = x.unsqueeze(1) if x.ndim == 3 else x.movedim(-1, 1)
    return x.contiguous().float().div_(largest)


def normalised(x: torch.Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> torch.Tensor:
    """(x − mean) / std with one number for everything or one per channel (dimension 1)."""
    if mean is None and std is None:
        return x
    if not x.is_floating_point():
        raise CovaryError(f"mean and std for inputs of {x.dtype}, which are token ids", "floats", "leave them out")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) not in (1, x.shape[1]):
            raise CovaryError(
                f"{len(values)} numbers for {name} and inputs with {x.shape[1]} channels, shape {tuple(x.shape[1:])}",
                f"1 or {x.shape[1]} numbers",
            )
    shape = (1, -1) + (1,) * (x.ndim - 2)
    if mean is not None:
        x = x - torch.tensor(mean, dtype=x.dtype).view(shape)
    return x if std is None else x / torch.tensor(std, dtype=x.dtype).view(shape)


def stacked(samples: Any, ids: list[str], where: str) -> np.ndarray:
    """Samples as one array; an error that names two of them where their shapes differ."""
    if isinstance(samples, np.ndarray):
        return samples
    for sample, name in zip(samples, ids, strict=True):
        if sample.shape != samples[0].shape:
            raise mixed_shapes(f"{ids[0]} has shape {samples[0].shape}", f"{name} has shape {sample.shape}", where)
    if {sample.dtype for sample in samples} == set(LARGEST):
        # Each by its own range, whatever else is in the batch: 255 becomes 65535.
        samples = [sample if sample.dtype == np.uint16 else sample * np.uint16(257) for sample in samples]
    return np.stack(samples)


def picture(raw: np.ndarray) -> Shaped[np.ndarray, "h w 3"] | None:
    """A raw sample as a uint8 picture of at most 64 px a side, or None where it is no image."""
    if raw.dtype == np.float32 and raw.ndim == 3 and raw.shape[0] in (1, 3, 4) and min(raw.shape[1:]) >= 4:
        raw, low, high = np.moveaxis(raw, 0, -1), float(raw.min()), float(raw.max())
        # Floats in [0, 1] or [0, 255] are shown as they are; what was normalised before is stretched to its own range.
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (0.0, 255.0) if low >= 0 and high <= 255 else (low, high)
        raw = np.clip((raw - low) / max(high - low, 1e-12) * 255 + 0.5, 0, 255).astype(np.uint8)
    raw = (raw >> 8).astype(np.uint8) if raw.dtype == np.uint16 else raw
    if raw.dtype != np.uint8 or raw.ndim not in (2, 3):
        return None
    raw = raw[..., None] if raw.ndim == 2 else raw
    raw = raw[..., :3] if raw.shape[-1] >= 3 else np.repeat(raw[..., :1], 3, axis=-1)
    image = Image.fromarray(np.ascontiguousarray(raw))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(image)


def channel_numbers(values: Any, what: str) -> tuple[float, ...] | None:
    """Mean or standard deviation as a tuple: one number, or one per channel; standard deviations are positive."""
    if values is None:
        return None
    numbers = tuple(float(v) for v in np.asarray(values, dtype=np.float64).reshape(-1))
    if not numbers or not all(math.isfinite(v) for v in numbers) or (what == "std" and min(numbers) <= 0):
        raise CovaryError(f"{what} is {list(numbers)}", "positive numbers" if what == "std" else "finite numbers")
    return numbers


def named_transform(transform: Any) -> tuple[Callable[[torch.Tensor], Any] | None, str | dict[str, Any] | None]:
    """A transform, given as a function or as `package.module:function`, and its name; of an `ImageTransform` what it
    holds, as which it may be given as well."""
    if isinstance(transform, Mapping):
        transform = ImageTransform.from_json(transform)
    if isinstance(transform, ImageTransform):
        return transform, transform.to_json()
    name = transform if isinstance(transform, str) else None
    function = load_object(transform, "transform") if isinstance(transform, str) else transform
    if function is None:
        return None, None
    if not callable(function):
        raise CovaryError(f"transform {transform!r} is a {type(function).__name__}", "a function of one tensor")
    module = getattr(function, "__module__", "")
    return function, name or f"{module}:{getattr(function, '__qualname__', type(function).__qualname__)}"


def reverse_channels(image: torch.Tensor) -> torch.Tensor:
    """A transform for networks that were trained on BGR images, as OpenCV reads them: (c, h, w) with c reversed."""
    return image.flip(0)


def mixed_shapes(one: str, other: str, where: str) -> CovaryError:
    """The error for inputs of different shapes; `one` and `other` name two of them with their shapes."""
    remedy = "bring them to one size, or pass transform=package.module:function that does"
    return CovaryError(f"{one} and {other} in {where}", "inputs of one shape", remedy)
