"""Networks that other people trained, described so that their weights load strictly and their figures can be checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from covary.bench.datasets import data_folder
from covary.errors import CovaryError, unknown_name


class PadShortcut(nn.Module):
    """The parameter-free shortcut of He et al. 2015 (arXiv 1512.03385, section 4.2, option A).

    Keeps every second pixel and pads the channels with zeros, equally on both sides: (n, c, h, w) -> (n, 2c, h/2, w/2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pad = nn.ZeroPad3d((0, 0, 0, 0, channels // 2, channels // 2))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        return self.pad(x[:, :, ::2, ::2])


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a shortcut around them (arXiv 1512.03385, figure 2)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        grows = channels_in != channels_out
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=2 if grows else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = PadShortcut(channels_in) if grows else nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(inner + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for 32x32 images, three stages of `blocks` basic blocks (arXiv 1512.03385, section 4.2)."""

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16) for _ in range(blocks)))
        self.layer2 = nn.Sequential(BasicBlock(16, 32), *(BasicBlock(32, 32) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(BasicBlock(32, 64), *(BasicBlock(64, 64) for _ in range(blocks - 1)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.flatten(self.pool(x)))


class PreActBlock(nn.Module):
    """Pre-activation block of Wide ResNet (arXiv 1605.07146, figure 1a).

    Where the width changes the 1x1 `convShortcut` takes the normalised, rectified input; else the shortcut is plain.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        grows = channels_in != channels_out
        self.convShortcut = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False) if grows else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        active = self.relu1(self.bn1(x))
        around = x if self.convShortcut is None else self.convShortcut(active)
        return around + self.conv2(self.relu2(self.bn2(self.conv1(active))))


class WideGroup(nn.Module):
    """Two pre-activation blocks; the first one carries the stride and the change of width."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            PreActBlock(channels_in, channels_out, stride), PreActBlock(channels_out, channels_out, 1)
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        return self.layer(x)


class WideResNet16(nn.Module):
    """Wide ResNet 16-k for 32x32 images (arXiv 1605.07146, table 1)."""

    def __init__(self, widen: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = WideGroup(16, 16 * widen, 1)
        self.block2 = WideGroup(16 * widen, 32 * widen, 2)
        self.block3 = WideGroup(32 * widen, 64 * widen, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(8)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64 * widen, classes)

    def forward(self, x: Float[Tensor, "n 3 32 32"]) -> Float[Tensor, "n classes"]:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.flatten(self.pool(self.relu(self.bn1(x)))))


class SmallVGG(nn.Module):
    """Six 3x3 convolutions in three stages of 32, 64 and 128 channels, each followed by batch normalisation and ELU."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, drop in ((32, 0.3), (64, 0.4), (128, 0.4)):
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ELU()]
                channels = width
            layers += [nn.MaxPool2d(2), nn.Dropout(drop)]
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(2048, classes)

    def forward(self, x: Float[Tensor, "n 3 32 32"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.flatten(self.features(x)))


class LeNet(nn.Module):
    """Two 5x5 convolutions with average pooling and two linear layers, for 1x28x28; returns logits, no softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.flatten = nn.Flatten()
        self.fc1 = nn.Sequential(nn.Linear(512, 512), nn.ReLU())
        self.fc2 = nn.Sequential(nn.Linear(512, 10))

    def forward(self, x: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 10"]:
        return self.fc2(self.fc1(self.flatten(self.conv2(self.conv1(x)))))


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
        factory: makes the module, in this file, so that `covary.bench.public:NAME` finds it.
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
    """A network behind its own normalisation, so that its input is pixels in [0, 1]: logits = network((x - mean) / std)."""

    def __init__(
        self, network: nn.Module, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean or (0.0,)).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std or (1.0,)).view(-1, 1, 1))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        return self.network((x - self.mean) / self.std)
