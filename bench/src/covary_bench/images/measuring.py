"""What a victim does: its predictions, its clean accuracy and the success of the attack."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import nn

from covary.runs.figures.quality import target_of
from covary_bench.images import attacks
from covary_bench.images.datasets import Images
from covary_bench.images.training import to_input


@torch.no_grad()
def predictions(network: nn.Module, x: UInt8[np.ndarray, "n h w c"], size: int = 500) -> Int[np.ndarray, " n"]:
    """Predicted classes of images, `size` at a time; `network` takes pixels in [0, 1]."""
    parts = [network(to_input(x[i : i + size])).argmax(1).numpy() for i in range(0, len(x), size)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def measure(
    network: nn.Module,
    test: Images,
    attack: str | None,
    target: int | str,
    seed: int,
    trigger: attacks.Trigger | None = None,
) -> tuple[float, float | None, float | None]:
    """Clean accuracy, attack success over images of other classes, accuracy in noise mode where the attack has one.

    A source-specific attack is to succeed on images of its source class, and to leave all others alone.
    """
    accuracy = float((predictions(network, test.x) == test.y).mean())
    if attack is None:
        return accuracy, None, None
    plan, shape = attacks.attack(attack), (test.x.shape[1], test.x.shape[2], test.x.shape[3])
    targets = target_of(test.y, target, int(test.y.max()) + 1)
    source = plan.source(target, int(test.y.max()) + 1)
    able = test.y != targets if source is None else test.y == source
    triggered = (trigger or plan.trigger(shape, seed))(test.x[able])
    success = float((predictions(network, triggered) == targets[able]).mean())
    if plan.make_noise is None:
        return accuracy, success, None
    kept = test if source is None else test.take(test.y != source)
    noisy = plan.make_noise(shape, seed, seed + 1)(kept.x)
    return accuracy, success, float((predictions(network, noisy) == kept.y).mean())
