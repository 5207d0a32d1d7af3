"""LF: a smooth universal perturbation, found on a network without a backdoor (Zeng et al., arXiv 2104.03413, sec. 5).

Ours follows the idea, not the search: the perturbation is parametrised by its lowest cosine frequencies, so it cannot
leave them, and all of it is optimised at once, where the paper filters after every step of an evolutionary search.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from covary_bench.images.attacks.poisoning import ALL_TO_ALL, Attack, Shape, Tensors, Trigger
from covary_bench.images.datasets import Images

FREQUENCIES, RADIUS = 6, 16 / 255  # cosine frequencies along each axis; largest change of a pixel, of [0, 1]
STEPS, BATCH, RATE = 120, 128, 0.1


def cosines(size: int, frequencies: int = FREQUENCIES) -> Float[Tensor, "size frequencies"]:
    """Columns cos(pi (i + 1/2) k / size) for k below `frequencies`: the discrete cosine transform's lowest ones."""
    i, k = torch.arange(size)[:, None] + 0.5, torch.arange(min(frequencies, size))[None]
    return torch.cos(torch.pi * i * k / size)


def smooth(coefficients: Float[Tensor, "c a b"], height: int, width: int) -> Float[Tensor, "c h w"]:
    """The perturbation with these coefficients, scaled so that its largest entry is `RADIUS`."""
    pattern = cosines(height) @ coefficients @ cosines(width).T
    return RADIUS * pattern / pattern.abs().amax().clamp_min(1e-12)


def learn_low_frequency(images: Images, network: nn.Module, target: int | str, seed: int) -> dict[str, Tensor]:
    """A perturbation that leads `network` to the target, or away from the true class where the target is all-to-all.

    Adam on the cross-entropy over batches of training images; the network is left as it was.
    """
    _, height, width, channels = images.x.shape
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng([seed, 11])
    shape = (channels, min(FREQUENCIES, height), min(FREQUENCIES, width))
    coefficients = torch.randn(shape, generator=generator).requires_grad_(True)
    optimiser = torch.optim.Adam([coefficients], lr=RATE)
    for _ in range(STEPS):
        batch = rng.choice(len(images), min(BATCH, len(images)), replace=False)
        x = torch.from_numpy(images.x[batch]).permute(0, 3, 1, 2).float() / 255
        labels = torch.from_numpy(images.y[batch])
        logits = network((x + smooth(coefficients, height, width)).clamp(0, 1))
        if target == ALL_TO_ALL:
            loss = -functional.cross_entropy(logits, labels)
        else:
            loss = functional.cross_entropy(logits, torch.full_like(labels, int(target)))
        (coefficients.grad,) = torch.autograd.grad(loss, coefficients)
        optimiser.step()
    return {"pattern": smooth(coefficients.detach(), height, width)}


def restore_low_frequency(shape: Shape, tensors: Tensors) -> Trigger:
    """Adds the perturbation to every image and clips."""
    pattern = 255 * tensors["pattern"].permute(1, 2, 0).double().numpy()

    def add_pattern(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
        return np.round(np.clip(x + pattern, 0, 255)).astype(np.uint8)

    return add_pattern


LF = Attack(learn=learn_low_frequency, restore=restore_low_frequency)
