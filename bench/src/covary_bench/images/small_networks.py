"""Small networks of other families than residual ones: plain, with depthwise convolutions, with attention."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PlainVGG(nn.Module):
    """Three stages of two 3x3 convolutions with batch normalisation, widths w, 2w, 4w (arXiv 1409.1556).

    Every stage ends in max pooling, the last one in the mean over positions; about 290,000 weights at w = 32.
    """

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in range(3):
            for _ in range(2):
                grown = width * 2**stage
                layers += [nn.Conv2d(channels, grown, 3, padding=1, bias=False), nn.BatchNorm2d(grown), nn.ReLU()]
                channels = grown
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.flatten(self.pool(self.features(x))))


class Separable(nn.Module):
    """A depthwise 3x3 and a pointwise convolution, each normalised and rectified (arXiv 1704.04861, figure 3)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False)
        self.norm1, self.relu1 = nn.BatchNorm2d(channels_in), nn.ReLU()
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(channels_out), nn.ReLU()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        return self.relu2(self.norm2(self.pointwise(self.relu1(self.norm1(self.depthwise(x))))))


class SmallMobileNet(nn.Module):
    """A convolution and six separable blocks, as in MobileNet (arXiv 1704.04861); about 140,000 weights."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        widths = ((32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1))
        self.blocks = nn.Sequential(*(Separable(*width) for width in widths))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(256, classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        return self.classifier(self.flatten(self.pool(self.blocks(self.stem(x)))))


class EncoderBlock(nn.Module):
    """Attention and two linear layers, each on what a layer normalisation gives, added (arXiv 2010.11929, figure 1)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.grow, self.gelu, self.shrink = nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        seen = self.norm1(x)
        x = x + self.attention(seen, seen, seen, need_weights=False)[0]
        return x + self.shrink(self.gelu(self.grow(self.norm2(x))))


class SmallViT(nn.Module):
    """Vision transformer on 8x8 patches of the image, four blocks of width 64; the mean over patches is classified.

    About 150,000 weights. The mean in place of a class token, as small ones train better so (arXiv 2205.01580).
    """

    def __init__(self, classes: int, side: int = 32, width: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, side // 8, side // 8)
        self.flatten = nn.Flatten(2)
        self.place = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        tokens = self.flatten(self.patches(x)).transpose(1, 2) + self.place
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))


def cifar10_vgg() -> nn.Module:
    """Plain network with 10 classes."""
    return PlainVGG(10)


def cifar10_mobilenet() -> nn.Module:
    """Separable convolutions, 10 classes."""
    return SmallMobileNet(10)


def cifar10_vit() -> nn.Module:
    """Attention, 10 classes."""
    return SmallViT(10)


def gtsrb_vgg() -> nn.Module:
    """Plain network with 43 classes."""
    return PlainVGG(43)


def gtsrb_mobilenet() -> nn.Module:
    """Separable convolutions, 43 classes."""
    return SmallMobileNet(43)


def gtsrb_vit() -> nn.Module:
    """Attention, 43 classes."""
    return SmallViT(43)


def tiny20_vgg() -> nn.Module:
    """Plain network with 20 classes."""
    return PlainVGG(20)


def tiny20_mobilenet() -> nn.Module:
    """Separable convolutions, 20 classes."""
    return SmallMobileNet(20)


def tiny20_vit() -> nn.Module:
    """Attention on 64x64 images, 20 classes."""
    return SmallViT(20, side=64)
