"""Input-Aware: a trigger of each image's own, made by networks trained with the victim (arXiv 2010.08138, section 3).

A mask network says where, a pattern network says what: B(x, x') = x (1 - m(x')) + p(x') m(x'). The mask network is
trained first and then frozen; pattern network and victim are trained together. Of every batch one part is triggered by
B(x, x) and gets the attacker's label, as large a part carries another image's trigger, B(x, x'), and keeps its label.
Normalisation is by groups of channels, so that a trigger never depends on the batch it is made in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from covary.runs.figures.quality import target_of
from covary_bench.images.attacks.poisoning import Attack, Shape, Tensors, Trigger
from covary_bench.images.datasets import Images

DIVERSITY, SPARSITY, DENSITY = 1.0, 100.0, 0.032  # weights of the two losses, share of pixels a mask may take
WIDTH, RATE, MASK_STEPS, MASK_BATCH = 16, 3e-3, 300, 32


def _block(channels_in: int, channels_out: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.GroupNorm(4, channels_out), nn.ReLU()]


class Generator(nn.Module):
    """An encoder and decoder with two halvings; outputs in [0, 1], of the image's size."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_block(channels_in, WIDTH), *_block(WIDTH, 2 * WIDTH, 2), *_block(2 * WIDTH, 4 * WIDTH, 2),
            nn.Upsample(scale_factor=2), *_block(4 * WIDTH, 2 * WIDTH),
            nn.Upsample(scale_factor=2), *_block(2 * WIDTH, WIDTH), nn.Conv2d(WIDTH, channels_out, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h w"]:
        return torch.sigmoid(self.layers(x - 0.5))


def sharpened(mask: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Nearly 0 or 1: tanh(20 m - 10) / 2 + 1/2."""
    return torch.tanh(20 * mask - 10) / 2 + 0.5


def diversity(
    x: Float[Tensor, "n c h w"], other: Float[Tensor, "n c h w"], a: Float[Tensor, "n d h w"],
    b: Float[Tensor, "n d h w"],
) -> Float[Tensor, ""]:  # fmt: skip
    """Mean of |x - x'| / |g(x) - g(x')| with root-mean-square distances: small when triggers differ as images do."""
    inputs = (x - other).flatten(1).square().mean(1).sqrt()
    return (inputs / ((a - b).flatten(1).square().mean(1) + 1e-6).sqrt()).mean()


class InputAware:
    """The two networks and their training beside the victim; implements `poisoning.Joint`."""

    def __init__(self, shape: Shape, target: int | str, classes: int, seed: int, ratio: float) -> None:
        self.target, self.classes, self.seed, self.ratio = target, classes, seed, ratio
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pattern, self.mask = Generator(shape[2], shape[2]), Generator(shape[2], 1)
        self.optimiser = torch.optim.Adam(self.pattern.parameters(), lr=RATE, betas=(0.5, 0.9))

    def begin(self, images: Images) -> None:
        """Trains the mask network: diversity, and SPARSITY * excess of each image's mean mask over DENSITY.

        A departure: the authors' code takes the excess of every pixel, then the mean. By the image's mean, a mask may
        be 1 at a few pixels at no cost.
        """
        rng = np.random.default_rng([self.seed, 17])
        optimiser = torch.optim.Adam(self.mask.parameters(), lr=RATE, betas=(0.5, 0.9))
        size = min(MASK_BATCH, len(images) // 2)
        for _ in range(MASK_STEPS):
            chosen = rng.choice(len(images), 2 * size, replace=False)
            x = torch.from_numpy(images.x[chosen]).permute(0, 3, 1, 2).float() / 255
            masks = sharpened(self.mask(x))
            loss = DIVERSITY * diversity(x[:size], x[size:], masks[:size], masks[size:])
            loss = loss + SPARSITY * (masks.mean((1, 2, 3)) - DENSITY).relu().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self.mask.requires_grad_(False)

    def batch(
        self, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"], Float[Tensor, ""]]:
        """The first images get their own trigger and the attacker's label, the next ones their neighbours' trigger."""
        count = min(max(1, round(self.ratio * len(x))), len(x) // 3)  # as many of one as of the other
        own, other = x[:count], x[2 * count : 3 * count]
        patterns = self.pattern(torch.cat((own, other)))
        masks = sharpened(self.mask(torch.cat((own, other))))
        mixed = torch.cat((own, x[count : 2 * count])) * (1 - masks) + patterns * masks
        targets = torch.from_numpy(target_of(y[:count].numpy(), self.target, self.classes))
        loss = DIVERSITY * diversity(own, other, patterns[:count].float(), patterns[count:].float())
        return torch.cat((mixed, x[2 * count :])), torch.cat((targets, y[count:])), loss

    def step(self) -> None:
        """Moves the pattern network."""
        self.optimiser.step()
        self.optimiser.zero_grad()

    def state(self) -> dict[str, object]:
        """Both networks and the optimiser."""
        return {"networks": self.tensors(), "optimiser": self.optimiser.state_dict()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Takes both networks and the optimiser back; the mask is trained by then."""
        load_generators(self.pattern, self.mask, state["networks"])
        self.mask.requires_grad_(False)
        self.optimiser.load_state_dict(state["optimiser"])

    def tensors(self) -> dict[str, Tensor]:
        """Weights of both networks."""
        named = {"pattern": self.pattern.state_dict(), "mask": self.mask.state_dict()}
        return {
            f"{head}.{name}": value.detach().clone() for head, part in named.items() for name, value in part.items()
        }


def load_generators(pattern: Generator, mask: Generator, tensors: Tensors) -> None:
    """Loads both networks from tensors named `pattern.` and `mask.`."""
    for head, network in (("pattern.", pattern), ("mask.", mask)):
        network.load_state_dict({n.removeprefix(head): v for n, v in tensors.items() if n.startswith(head)})


def restore_input_aware(shape: Shape, tensors: Tensors) -> Trigger:
    """B(x, x), rounded to 8 bits."""
    pattern, mask = Generator(shape[2], shape[2]), Generator(shape[2], 1)
    load_generators(pattern, mask, tensors)
    pattern.requires_grad_(False)
    mask.requires_grad_(False)

    def mix(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
        changed = x.copy()
        for start in range(0, len(x), 250):
            part = torch.from_numpy(x[start : start + 250]).permute(0, 3, 1, 2).float() / 255
            m = sharpened(mask(part))
            out = part * (1 - m) + pattern(part) * m
            changed[start : start + 250] = (255 * out).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return changed

    return mix


INPUT_AWARE = Attack(joint=InputAware, restore=restore_input_aware)
