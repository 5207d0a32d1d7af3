"""Architectures of BackdoorBench's records, with the parameter names that its files use: PreActResNet18 and VGG19."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """Pre-activation block (arXiv 1603.05027, figure 1b); where it grows, a 1x1 shortcut of the active input."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        grows = stride != 1 or channels_in != channels_out
        projection = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
        self.shortcut = nn.Sequential(projection) if grows else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        active = self.relu1(self.bn1(x))
        around = x if self.shortcut is None else self.shortcut(active)
        return around + self.conv2(self.relu2(self.bn2(self.conv1(active))))


class PreActResNet18(nn.Module):
    """Four stages of two pre-activation blocks, 64 to 512 channels, for small images (arXiv 1603.05027)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(PreActBlock(64, 64, 1), PreActBlock(64, 64, 1))
        self.layer2 = nn.Sequential(PreActBlock(64, 128, 2), PreActBlock(128, 128, 1))
        self.layer3 = nn.Sequential(PreActBlock(128, 256, 2), PreActBlock(256, 256, 1))
        self.layer4 = nn.Sequential(PreActBlock(256, 512, 2), PreActBlock(512, 512, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(self.flatten(self.avgpool(x)))


VGG19_WIDTHS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels and convolutions of each stage


class VGG19(nn.Module):
    """Configuration E of Simonyan and Zisserman (arXiv 1409.1556, table 1), with or without batch normalisation.

    The features are averaged to 7x7 before the three linear layers, so that any image of 32 pixels or more fits.
    """

    def __init__(self, classes: int = 10, normalised: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, count in VGG19_WIDTHS:
            for _ in range(count):
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width), nn.ReLU()] if normalised else [nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Dropout(),
            nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(),
            nn.Linear(4096, classes),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.flatten(self.avgpool(self.features(x))))
