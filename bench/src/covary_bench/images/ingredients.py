"""What a cell's case is made of: a network with its trigger and test images cut into disjoint parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import nn

from covary.errors import unknown_name
from covary_bench.cell import Cell
from covary_bench.images import attacks, datasets, public, victims
from covary_bench.images.datasets import Images


@dataclass(frozen=True)
class AttackedNetwork:
    """The network under test.

    Attributes:
        network: takes pixels in [0, 1].
        model, weights, mean, std: what `covary scan` is told.
        dataset: its test images.
        target: the attacker's label, "all-to-all", or None.
        trigger: of its backdoor, or None.
        source: the one class whose images the trigger works on; None = all but the target's.
        facts: how training went: accuracy, attack success, marks.
    """

    network: nn.Module
    model: str
    weights: Path
    dataset: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    target: int | str | None = None
    trigger: attacks.Trigger | None = None
    source: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def attacked_network(cell: Cell, attack: str | None, cache: Path, device: str = "cpu") -> AttackedNetwork:
    """The network of a cell: a public one, or a victim of `attack`, trained into the cache unless it is there.

    It answers on the processor, wherever it was trained.
    """
    kind = cell.dataset
    if kind in public.NETWORKS:
        described = public.NETWORKS[kind]
        network = public.Normalised(public.load_public(kind), described.mean, described.std).eval()
        return AttackedNetwork(
            network, f"covary_bench.images.public:{described.factory.__name__}", public.weights_path(kind),
            described.dataset, described.mean, described.std, described.target,
            attacks.trigger(described.trigger) if described.trigger else None,
            facts={"network": kind, "accuracy": described.accuracy},
        )  # fmt: skip
    if kind not in victims.VICTIMS:
        raise unknown_name("victim or public network", kind, [*victims.VICTIMS, *public.NETWORKS])
    target: int | str = "all-to-all" if cell.options.get("target") == "all-to-all" else 0
    ratio = cell.number("ratio", 0) or None
    home = cache / "victims"
    victim = victims.train_victim(kind, attack, home, target=target, seed=cell.seed, ratio=ratio, device=device)
    facts = {
        "clean_accuracy": victim.clean_accuracy, "attack_success": victim.attack_success, "marks": list(victim.marks),
        "attempts": list(victim.attempts), "training_seconds": victim.seconds,
    }  # fmt: skip
    classes = int(datasets.load(victims.VICTIMS[kind].test).y.max()) + 1
    source = attacks.attack(attack).source(victim.target, classes) if attack else None
    return AttackedNetwork(
        victims.load_victim(victim), victim.factory, Path(victim.weights), victims.VICTIMS[kind].test,
        target=victim.target if attack else None, trigger=victims.load_trigger(victim) if attack else None,
        source=source, facts=facts,
    )  # fmt: skip


class Cutter:
    """Deals out the test images of a cell, each at most once.

    The order depends on the data set and the cell's seed alone: cells of one data set and seed share their trusted
    and clean images, so that attacks compare.
    """

    def __init__(self, images: Images, seed: int) -> None:
        self.images = images
        name = hashlib.sha256(str(images.id[0]).encode()).digest()[0]
        self.left = np.random.default_rng([seed, name, 21]).permutation(len(images))

    def per_class(self, counts: dict[int, int]) -> Images:
        """So many images of each class, or all there are, in random order."""
        labels = self.images.y[self.left]
        chosen = [np.flatnonzero(labels == label)[:count] for label, count in counts.items()]
        return self._take(np.sort(np.concatenate(chosen)))

    def balanced(self, n: int) -> Images:
        """About n images, the same number of every class."""
        labels = np.unique(self.images.y)
        return self.per_class({int(label): max(1, round(n / len(labels))) for label in labels})

    def first(self, n: int, allowed: np.ndarray | None = None) -> Images:
        """The next n images, or all there are; `allowed` is a mask over all images."""
        fits = np.ones(len(self.left), bool) if allowed is None else allowed[self.left]
        return self._take(np.flatnonzero(fits)[:n])

    def _take(self, positions: Int[np.ndarray, " k"]) -> Images:
        chosen = self.left[positions]
        self.left = np.delete(self.left, positions)
        return self.images.take(chosen)


def test_images(dataset: str, seed: int) -> Cutter:
    """The test images of a data set, ready to be dealt out."""
    return Cutter(datasets.load(dataset), seed)


def joined(parts: Sequence[Images]) -> Images:
    """Images of several sets, in order."""
    return Images(
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.y for part in parts]),
        [name for part in parts for name in part.id],
    )
