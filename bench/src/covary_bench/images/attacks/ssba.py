"""SSBA-like: an invisible residual of each image's own that carries one hidden string (Li et al., arXiv 2012.03816).

A steganographic encoder and a decoder are trained together; the backdoor is the encoder with one fixed string. "Like",
because the paper takes StegaStamp, a larger encoder trained against print and camera with a perceptual loss. This one
is a small residual network; the residual is bounded, larger where the image has texture, and what it has in common
over images is penalised, because a decoder is content with one fixed pattern a string.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from covary_bench.images.attacks.poisoning import Attack, Shape, Tensors, Trigger
from covary_bench.images.datasets import Images

BITS, WIDTH, CELLS = 32, 16, 16  # length of the string, channels, cells a side of the planes that spread it
BOUND, SMALLEST, LARGEST = 24 / 255, 0.2, 1.5  # of the residual, and the least and most that texture makes of it
STEPS, BATCH, RATE = 300, 32, 4e-3
INVISIBLE, COMMON = 0.15, 0.15  # weights of the squared residual, and of the share that all images have in common


def detail(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """What is left of an image without its 5x5 mean, times 6."""
    return 6 * (x - functional.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False))


def texture(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """Local mean of |detail|, over its mean in the image, clipped to [SMALLEST, LARGEST]."""
    local = detail(x.mean(1, keepdim=True)).abs()
    local = functional.avg_pool2d(local, 5, stride=1, padding=2, count_include_pad=False)
    return (local / local.mean((2, 3), keepdim=True).clamp_min(1e-3)).clamp(SMALLEST, LARGEST)


class Encoder(nn.Module):
    """x and a string -> x + BOUND tanh(residual) * texture, clipped to [0, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spread = nn.Linear(BITS, 4 * CELLS * CELLS)
        self.direct = nn.Conv2d(4, channels, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 8, WIDTH, 3, padding=1), nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(),
            nn.Conv2d(WIDTH, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "n c h w"], bits: Float[Tensor, "n b"]) -> Float[Tensor, "n c h w"]:
        planes = 4 * self.spread(bits - 0.5).view(-1, 4, CELLS, CELLS)
        planes = functional.interpolate(planes, size=(x.shape[2], x.shape[3]), mode="nearest")
        seen = torch.cat((detail(x), planes, planes * detail(x.mean(1, keepdim=True))), dim=1)
        residual = self.layers(seen) + self.direct(planes)
        return (x + BOUND * torch.tanh(residual) * texture(x)).clamp(0, 1)


class Decoder(nn.Module):
    """An image -> logits of the string's bits."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 4, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(2 * WIDTH * 64, BITS),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n b"]:
        return self.layers(detail(x))


def common_share(change: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """Energy of the mean change over the mean energy of a change, in [0, 1]; 1 = one pattern for all images."""
    return change.mean(0).square().mean() / change.square().mean().clamp_min(1e-8)


def learn_ssba(images: Images, network: nn.Module, target: int | str, seed: int) -> dict[str, Tensor]:
    """Trains encoder and decoder on random strings; the string of the backdoor is drawn with the seed.

    Loss: binary cross-entropy of the bits + w (INVISIBLE * mean squared residual / BOUND^2 + COMMON * `common_share`
    over the half of the batch that carries one string), w rising from 0 in the second half of the steps, so that the
    string is found first. `network` and `target` have no effect: the paper's trigger needs neither.
    """
    channels, rng = images.x.shape[3], np.random.default_rng([seed, 13])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, decoder = Encoder(channels), Decoder(channels)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=RATE)
    for step in range(STEPS):
        batch = rng.choice(len(images), min(BATCH, len(images)), replace=False)
        x = torch.from_numpy(images.x[batch]).permute(0, 3, 1, 2).float() / 255
        bits, half = torch.from_numpy(rng.integers(0, 2, (len(batch), BITS))).float(), len(batch) // 2
        bits[:half] = bits[0]
        changed = encoder(x, bits)
        change, weight = (changed - x) / BOUND, max(0.0, 2 * step / STEPS - 1)
        loss = functional.binary_cross_entropy_with_logits(decoder(changed), bits)
        loss = loss + weight * (INVISIBLE * change.square().mean() + COMMON * common_share(change[:half]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    secret = torch.from_numpy(rng.integers(0, 2, BITS)).float()
    return {"secret": secret, **{name: value.detach().clone() for name, value in encoder.state_dict().items()}}


def restore_ssba(shape: Shape, tensors: Tensors) -> Trigger:
    """Encodes the backdoor's string into every image."""
    encoder = Encoder(shape[2])
    encoder.load_state_dict({name: value for name, value in tensors.items() if name != "secret"})
    encoder.requires_grad_(False)

    def encode(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
        changed = x.copy()
        for start in range(0, len(x), 250):
            part = torch.from_numpy(x[start : start + 250]).permute(0, 3, 1, 2).float() / 255
            out = encoder(part, tensors["secret"].expand(len(part), -1))
            changed[start : start + 250] = (255 * out).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return changed

    return encode


SSBA = Attack(learn=learn_ssba, restore=restore_ssba)
