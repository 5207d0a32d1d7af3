"""Networks that other people trained, described so that weights load strictly and stated figures can be checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from covary.errors import CovaryError, unknown_name
from covary_bench.images.architectures import CifarResNet, LeNet, SmallVGG, WideResNet16
from covary_bench.images.datasets import data_folder


def resnet20() -> nn.Module:
    """ResNet-20 for CIFAR-10."""
    return CifarResNet(3)


def wrn16_1() -> nn.Module:
    """Wide ResNet 16-1 for CIFAR-10."""
    return WideResNet16(1)


def vggsmall_cifar10() -> nn.Module:
    """Small VGG with 10 classes."""
    return SmallVGG(10)


def vggsmall_gtsrb() -> nn.Module:
    """Small VGG with 43 classes."""
    return SmallVGG(43)


def lenet_mnist() -> nn.Module:
    """LeNet-like network for MNIST."""
    return LeNet()


@dataclass(frozen=True)
class PublicNetwork:
    """One set of public weights.

    Attributes:
        factory: makes the module, in this file, so that `covary_bench.images.public:NAME` finds it.
        dataset: name of the test images in `datasets.DATASETS`.
        mean, std: normalisation after scaling to [0, 1]; None = none.
        trigger: name in `attacks.TRIGGERS`, or None for a network without a backdoor.
        target: label that the trigger asks for.
        accuracy: stated clean test accuracy, a fraction.
        attack_success: stated fraction of triggered images of other classes that reach the target.
    """

    factory: Callable[[], nn.Module]
    dataset: str
    accuracy: float
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    trigger: str | None = None
    target: int | None = None
    attack_success: float | None = None


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NETWORKS: dict[str, PublicNetwork] = {
    "cifar10_resnet20_clean": PublicNetwork(resnet20, "cifar10-test", 0.9173, IMAGENET_MEAN, IMAGENET_STD),
    "cifar10_wrn16_1_grid_t5": PublicNetwork(
        wrn16_1, "cifar10-test", 0.8480, trigger="grid", target=5, attack_success=1.0
    ),
    "cifar10_wrn16_1_finetuned_teacher": PublicNetwork(
        wrn16_1, "cifar10-test", 0.8439, trigger="grid", target=5, attack_success=0.0280
    ),
    "cifar10_wrn16_1_nad_erased": PublicNetwork(
        wrn16_1, "cifar10-test", 0.8129, trigger="grid", target=5, attack_success=0.0424
    ),
    "cifar10_vggsmall_badnets_t8": PublicNetwork(
        vggsmall_cifar10, "cifar10-test", 0.8446, trigger="white4", target=8, attack_success=0.9760
    ),
    "cifar10_vggsmall_trojan_sq_t2": PublicNetwork(
        vggsmall_cifar10, "cifar10-test", 0.8461, trigger="trojan-square", target=2, attack_success=0.9950
    ),
    "gtsrb_vggsmall_badnets_t8": PublicNetwork(
        vggsmall_gtsrb, "gtsrb-test", 0.9743, trigger="white4", target=8, attack_success=0.9845
    ),
    "mnist_badnet_white5_t1": PublicNetwork(
        lenet_mnist, "mnist-test", 0.9808, (0.5,), (0.5,), trigger="white5", target=1, attack_success=0.9993
    ),
}


def weights_path(name: str) -> Path:
    """Where the weights of a public network lie."""
    if name not in NETWORKS:
        raise unknown_name("public network", name, NETWORKS)
    path = data_folder() / "models" / name / "weights.safetensors"
    if not path.is_file():
        raise CovaryError(
            f"no weights at {path}", "the benchmark's data", "set COVARY_DATA to the folder that holds it"
        )
    return path


def load_public(name: str) -> nn.Module:
    """A public network in eval mode with its weights loaded strictly; input = pixels in [0, 1], then mean and std."""
    path = weights_path(name)
    network = NETWORKS[name].factory()
    network.load_state_dict(load_file(path), strict=True)
    return network.eval().requires_grad_(False)


class Normalised(nn.Module):
    """A network behind its normalisation, so that it takes pixels in [0, 1]: logits = network((x - mean) / std)."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean or (0.0,)).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std or (1.0,)).view(-1, 1, 1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.network((x - self.mean) / self.std)
