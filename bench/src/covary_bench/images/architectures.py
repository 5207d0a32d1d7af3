"""Module classes of the public networks: plain layers, each used once, nothing in place; they return logits."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


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


class SmallResNet(nn.Module):
    """Three stages of 3x3 convolutions, the last two with one residual block (arXiv 1512.03385); about 118,000 weights.

    Widths w, 2w, 4w; every stage ends in max pooling, the last one in the mean over positions.
    """

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in range(3):
            grown = width * 2**stage
            layers += [nn.Conv2d(channels, grown, 3, padding=1, bias=False), nn.BatchNorm2d(grown), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] + ([BasicBlock(grown, grown)] if stage else [])
            channels = grown
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.flatten(self.pool(self.features(x))))
