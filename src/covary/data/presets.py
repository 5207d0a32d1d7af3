"""What other libraries say of a network's images: resize, crop, mean and standard deviation, as plain data.

From `model.pretrained_cfg` of timm, `Weights.transforms()` of torchvision and image processors of transformers. None of
them needs to be installed: they are known by what they hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from covary.errors import CovaryError, unknown_name

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class ImageTransform:
    """Resize and centre crop of an image, as Pillow does them; a transform of one float tensor (c, h, w) in [0, 1].

    Attributes:
        resize: (s,) brings the shorter side to s, (h, w) both; None leaves the size.
        crop: (h, w) cut from the middle, with black around where the image is smaller; None cuts nothing.
        interpolation: a name in `INTERPOLATIONS`.
        rounding: where the middle lies of an odd rest: `round` as torchvision and timm, `floor` as transformers.
        channels: grey images are repeated to so many.
    """

    resize: tuple[int, ...] | None = None
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    rounding: Literal["round", "floor"] = "round"
    channels: int = 3

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", self.interpolation, INTERPOLATIONS)

    def __call__(self, image: Float[torch.Tensor, "c h w"]) -> Float[torch.Tensor, "c2 h2 w2"]:
        """The image, resized and cropped; uint8 in between, as of decoded files."""
        if image.ndim != 3 or not image.is_floating_point() or image.shape[0] not in (1, 3):
            found = f"an input of shape {tuple(image.shape)}, {str(image.dtype).removeprefix('torch.')}"
            raise CovaryError(found, "an image of 1 or 3 channels", "give a transform= of your own")
        if not 0 <= float(image.min()) <= float(image.max()) <= 1:
            found = f"an image with values from {float(image.min()):.3g} to {float(image.max()):.3g}"
            raise CovaryError(found, "pixels, 0 to 255 as uint8", "hand over images as they are stored")
        pixels = (image * 255).round().to(torch.uint8)
        pixels = pixels.expand(self.channels, -1, -1) if pixels.shape[0] == 1 else pixels
        array = pixels.movedim(0, -1).contiguous().numpy()
        picture = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        picture = self._cropped(self._resized(picture))
        array = np.asarray(picture)
        array = array[..., None] if array.ndim == 2 else array
        return torch.from_numpy(array.copy()).movedim(-1, 0).float() / 255

    def _resized(self, picture: Image.Image) -> Image.Image:
        if self.resize is None:
            return picture
        width, height = picture.size
        if len(self.resize) == 2:
            size = (self.resize[1], self.resize[0])
        else:
            short, long = self.resize[0], int(self.resize[0] * max(width, height) / min(width, height))
            size = (short, long) if width <= height else (long, short)
        return picture if size == picture.size else picture.resize(size, INTERPOLATIONS[self.interpolation])

    def _cropped(self, picture: Image.Image) -> Image.Image:
        if self.crop is None:
            return picture
        high, wide = self.crop
        width, height = picture.size
        if width < wide or height < high:
            canvas = Image.new(picture.mode, (max(width, wide), max(height, high)))
            canvas.paste(picture, (max(0, wide - width) // 2, max(0, high - height) // 2))
            picture, (width, height) = canvas, canvas.size
        top, left = (
            round(rest / 2) if self.rounding == "round" else rest // 2 for rest in (height - high, width - wide)
        )
        return picture.crop((left, top, left + wide, top + high))

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `from_json` reads."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> ImageTransform:
        """What `to_json` gave.

        Raises:
            CovaryError: a record that is none.
        """
        try:
            values: dict[str, Any] = dict(record)
            for name in ("resize", "crop"):
                values[name] = None if values.get(name) is None else tuple(values[name])
            return ImageTransform(**values)
        except (TypeError, ValueError) as problem:
            found = f"a transform with {', '.join(map(str, record))}"
            raise CovaryError(found, "resize, crop, interpolation, rounding and channels") from problem


@dataclass(frozen=True)
class Preset:
    """What a library says is to be done to a network's images.

    Attributes:
        source: where it was found, in words.
        transform: resize and crop; None where nothing is known of them.
        mean, std: per channel, after scaling to [0, 1].
        always: whether arrays are resized like decoded images.
    """

    source: str
    transform: ImageTransform | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    always: bool = False

    def words(self) -> str:
        """What is done, in a sentence."""
        steps = []
        if self.transform is not None and self.transform.resize:
            steps.append(f"resize to {'x'.join(map(str, self.transform.resize))} ({self.transform.interpolation})")
        if self.transform is not None and self.transform.crop:
            steps.append(f"centre crop to {'x'.join(map(str, self.transform.crop))}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None:
                steps.append(f"{name} {', '.join(f'{v:g}' for v in values)}")
        return f"{self.source}: {', '.join(steps)}"


def carried_by(module: Any) -> Preset | None:
    """What a network says of its images in timm's way (`pretrained_cfg` or `default_cfg`); None where it says nothing.

    timm's evaluation transform: with s = floor(size / crop_pct) the shorter side becomes s, and the middle is cut.
    """
    cfg: Any = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if cfg is not None and not isinstance(cfg, Mapping):
        cfg = {name: getattr(cfg, name, None) for name in (*_CFG, "mean", "std")}
    if not cfg or not (cfg.get("mean") and cfg.get("std")):
        return None
    mean, std = _numbers(cfg["mean"]), _numbers(cfg["std"])
    return Preset("the network's pretrained_cfg", _of_cfg(cfg, len(mean)), mean, std)


_CFG = ("input_size", "crop_pct", "interpolation", "crop_mode")


def _of_cfg(cfg: Mapping[str, Any], channels: int) -> ImageTransform | None:
    size, mode = cfg.get("input_size"), cfg.get("crop_mode") or "center"
    if not size or len(size) != 3 or mode not in ("center", "squash") or (mode == "center" and size[1] != size[2]):
        return None
    scaled = [math.floor(side / (cfg.get("crop_pct") or 0.875)) for side in size[1:]]
    resize = (scaled[0],) if mode == "center" else tuple(scaled)
    named = cfg.get("interpolation") or "bilinear"
    return ImageTransform(resize, (size[1], size[2]), "bilinear" if named == "random" else named, "round", channels)


def preset_of(transform: Any) -> Preset | None:
    """The preset behind what was handed as a transform: one of torchvision's or transformers' objects; else None.

    torchvision's `Weights.transforms()` holds `resize_size`, `crop_size`, `interpolation`, `mean` and `std`; an image
    processor of transformers `size`, `resample`, `image_mean` and `image_std`.
    """
    name = type(transform).__name__
    if all(hasattr(transform, field) for field in ("resize_size", "crop_size", "interpolation", "mean", "std")):
        mean, std = _numbers(transform.mean), _numbers(transform.std)
        named = getattr(transform.interpolation, "value", transform.interpolation)
        inner = ImageTransform(_sides(transform.resize_size), _both(transform.crop_size), named, "round", len(mean))
        return Preset(f"the transforms {name}", inner, mean, std, always=True)
    if all(hasattr(transform, field) for field in ("size", "resample", "image_mean", "image_std")):
        return _of_processor(transform, name)
    return None


def _of_processor(processor: Any, name: str) -> Preset:
    factor = getattr(processor, "rescale_factor", 1 / 255) if getattr(processor, "do_rescale", True) else 1.0
    if abs(factor * 255 - 1) > 1e-6 or getattr(processor, "do_pad", False):
        found = f"{name} that rescales by {factor:g}" if abs(factor * 255 - 1) > 1e-6 else f"{name} that pads"
        raise CovaryError(found, "one that resizes, crops and scales by 1/255", "give mean=, std= and transform=")
    normalises = getattr(processor, "do_normalize", True)
    mean, std = (_numbers(v) if normalises else None for v in (processor.image_mean, processor.image_std))
    resize = _of_size(processor.size, name) if getattr(processor, "do_resize", True) else None
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    crop = None if crop is None else _both(_of_size(crop, name))
    named = next(key for key, value in INTERPOLATIONS.items() if value == int(processor.resample))
    channels = 3 if mean is None else len(mean)
    inner = ImageTransform(resize, crop, named, "floor", channels)
    return Preset(f"the processor {name}", inner, mean, std, always=True)


def _of_size(size: Any, name: str) -> tuple[int, ...]:
    if isinstance(size, int):
        return (size,)
    known = {key: size.get(key) if isinstance(size, Mapping) else getattr(size, key, None) for key in _SIZES}
    if known["height"] and known["width"]:
        return (int(known["height"]), int(known["width"]))
    if known["shortest_edge"] and not known["longest_edge"]:
        return (int(known["shortest_edge"]),)
    found = f"{name} with the size {dict(size) if isinstance(size, Mapping) else size}"
    raise CovaryError(found, "height and width, or shortest_edge", "give mean=, std= and transform=")


_SIZES = ("height", "width", "shortest_edge", "longest_edge")


def with_preset(transform: Any, mean: Any, std: Any) -> tuple[Any, Any, Any]:
    """Transform, mean and std with what a library's object says put in; a mean or std given beside it wins."""
    preset = preset_of(transform)
    if preset is None:
        return transform, mean, std
    return preset.transform, preset.mean if mean is None else mean, preset.std if std is None else std


def as_arrays_are(preset: Preset) -> Preset:
    """The preset for arrays of one size, which are not resized unless it always does."""
    return preset if preset.always else replace(preset, transform=None)


def differs(preset: Preset, preprocessing: Mapping[str, Any]) -> str:
    """What is done otherwise than a preset says, in a sentence; empty where nothing is."""
    own = {"mean": preset.mean, "std": preset.std}
    other = [
        name for name, values in own.items()
        if values is not None and not np.allclose(np.broadcast_to(preprocessing[name] or 0, len(values)), values)
    ]  # fmt: skip
    if preset.transform is not None and preprocessing["transform"] not in (None, preset.transform.to_json()):
        other.append("transform")
    if not other:
        return ""
    return f"{' and '.join(other)} given beside {preset.words()}; what was given is done."


def _numbers(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _sides(size: Any) -> tuple[int, ...]:
    return (int(size),) if isinstance(size, int) else tuple(int(side) for side in size)


def _both(size: Any) -> tuple[int, int]:
    sides = _sides(size)
    return (sides[0], sides[-1])
