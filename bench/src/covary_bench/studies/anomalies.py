"""What the anomalous inputs of a case are made of, and how: one maker a kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from covary.errors import CovaryError
from covary_bench.images import attacks, datasets, victims
from covary_bench.images.attacks.adversarial import attack_in_batches
from covary_bench.images.corruptions import CORRUPTIONS
from covary_bench.images.datasets import NO_CLASS, Images

N_ANOMALOUS = 800


@dataclass(frozen=True)
class AttackedNetwork:
    """The network of a case and all that `covary scan` must be told about it."""

    network: nn.Module  # takes pixels in [0, 1]
    model: str
    weights: Path
    dataset: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    target: int | None = None
    trigger: attacks.Trigger | None = None


@dataclass(frozen=True)
class Pool:
    """What an anomaly may be made of: images used for nothing else, in random order, and the case's seed."""

    attacked: AttackedNetwork
    images: Images
    seed: int


Pixels = np.ndarray  # uint8 (n, h, w, c), or float32 (n, c, h, w) in [0, 1] where 8 bits would undo the attack
Anomaly = Callable[[Pool], tuple[Pixels, Images]]


def triggered(pool: Pool) -> tuple[Pixels, Images]:
    """Images of classes other than the target, with the trigger."""
    trigger, target = pool.attacked.trigger, pool.attacked.target
    if trigger is None or target is None:
        raise CovaryError(f"{pool.attacked.model} has no trigger", "a backdoored network")
    images = pool.images.take(pool.images.y != target).first(N_ANOMALOUS)
    return trigger(images.x), images


def adversarial(name: str) -> Anomaly:
    """Adversarial examples, as float32, of images that the network classifies correctly (fooled or not)."""

    def make(pool: Pool) -> tuple[Pixels, Images]:
        right = victims.predictions(pool.attacked.network, pool.images.x) == pool.images.y
        images = pool.images.take(right).first(N_ANOMALOUS)
        x, y = victims.to_input(images.x), torch.from_numpy(images.y)
        return attack_in_batches(attacks.ADVERSARIAL[name], pool.attacked.network, x, y, pool.seed).numpy(), images

    return make


def corrupted(name: str) -> Anomaly:
    """The same kind of image as the clean ones, corrupted."""

    def make(pool: Pool) -> tuple[Pixels, Images]:
        images = pool.images.first(N_ANOMALOUS)
        return CORRUPTIONS[name](images.x, pool.seed), images

    return make


def foreign(dataset: str) -> Anomaly:
    """Images of another data set, at most 800 (all of the photos); labels become `NO_CLASS`."""

    def make(pool: Pool) -> tuple[Pixels, Images]:
        images = datasets.load(dataset)
        if not dataset.startswith("photos"):
            images = images.take(np.random.default_rng([pool.seed, 2]).permutation(len(images))[:N_ANOMALOUS])
        x = images.x
        if x.shape[1:] == (28, 28, 1):  # black frame to 32x32, grey to RGB
            x = np.repeat(np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), 3, axis=-1)
        return x, Images(x, np.full(len(x), NO_CLASS, dtype=np.int64), images.id)

    return make
