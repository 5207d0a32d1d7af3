"""Networks of BackdoorBench's records by name; PreActResNet18 and VGG19 are ours, the others come with torchvision.

Factories for `--model` are called `NAME_CLASSES`, as in `covary_bench.images.backdoorbench.models:preactresnet18_10`.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from covary.errors import CovaryError, missing_extra, unknown_name
from covary_bench.images.backdoorbench.architectures import VGG19, PreActResNet18


class Resized(nn.Module):
    """Images enlarged to 224x224 by bilinear interpolation, what a vision transformer's records put before it."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 224 224"]:
        return functional.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False, antialias=True)


def _torchvision(name: str) -> Callable[[int], nn.Module]:
    def make(classes: int) -> nn.Module:
        try:
            models = importlib.import_module("torchvision.models")
        except ImportError:
            raise missing_extra("torchvision", "vision") from None
        except RuntimeError as error:  # its compiled part was built for another torch
            remedy = "install the torchvision that was released with this torch"
            raise CovaryError(f"torchvision does not load ({error})", "one that fits torch", remedy) from error
        network = getattr(models, name)(num_classes=classes)
        return nn.Sequential(Resized(), network) if name == "vit_b_16" else network

    return make


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "preactresnet18": PreActResNet18,
    "vgg19_bn": functools.partial(VGG19, normalised=True),
    "vgg19": VGG19,
    "convnext_tiny": _torchvision("convnext_tiny"),
    "vit_b_16": _torchvision("vit_b_16"),
    "densenet161": _torchvision("densenet161"),
    "mobilenet_v3_large": _torchvision("mobilenet_v3_large"),
    "efficientnet_b3": _torchvision("efficientnet_b3"),
}


def factory_name(model: str, classes: int) -> str:
    """What `--model` takes for a network of a record."""
    if model not in MODELS:
        raise unknown_name("model of a record", model, MODELS)
    return f"covary_bench.images.backdoorbench.models:{model}_{classes}"


def __getattr__(name: str) -> Callable[[], nn.Module]:
    found = re.fullmatch(r"(\w+)_(\d+)", name)
    if found is None or found.group(1) not in MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return functools.partial(MODELS[found.group(1)], int(found.group(2)))
