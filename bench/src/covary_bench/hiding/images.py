"""A backdoored network trained further until what detectors look at says the same of triggered inputs as of clean.

After Bailey et al. (arXiv 2412.09565), on images. What keeps the network whole while it hides: the two tasks go on,
and on clean inputs its answers and its activations are held near those of the network as it was, so that a layer cannot
be blinded by being ruined.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from covary.errors import CovaryError
from covary_bench.hiding.piles import Amplified, direction_gaps
from covary_bench.images.attacks.class_profile import ClassProfile
from covary_bench.images.attacks.clean_reference import (
    FEATURES,
    CleanReference,
    answered,
    confidence,
    inside,
    quantile_distance,
)
from covary_bench.images.attacks.poisoning import Trigger
from covary_bench.images.datasets import Images
from covary_bench.images.training import to_input

# `gradients` hides from activations as well, `piles` from all three.
Hidden = Literal["activations", "gradients", "piles"]
Draw = Callable[[Int[np.ndarray, " k"], int], Int[np.ndarray, " c"]]
ANCHOR = 0.1  # weight of what clean activations moved
REFRESH, KNOWN, KNOWN_OWN = 3, 400, 200  # clean inputs that hiding compares with, drawn anew every so many steps
PROFILED, PROFILED_OWN = 32, 200  # with gradients of gradients
AMPLIFIED = 64
WARM = 20
CERTAIN = 0.5  # margin of a triggered input that is answered surely enough


@dataclass(frozen=True)
class Budget:
    """What one attempt may cost: steps, images a step of each kind, highest learning rate."""

    steps: int = 200
    batch: int = 96
    rate: float = 1e-3


def hide(
    network: nn.Module,
    images: Images,
    trigger: Trigger,
    target: int,
    hidden: Hidden,
    strength: float,
    seed: int,
    budget: Budget,
) -> nn.Module:
    """A copy of `network`, trained further by Adam, warm at first and down along a cosine.

    Tasks: cross-entropy of clean inputs + how far the margin of triggered ones is below `CERTAIN` + on clean inputs KL
    from the answers as they were + `ANCHOR` * how far every layer's pooled activations moved. Hiding: how far triggered
    inputs are from clean ones (`CleanReference`, confidence; with `gradients` also `ClassProfile`; with `piles` also
    `Amplified`, and how far triggered rows reach along a direction of their own). It pulls with `strength` (see
    `_pull`), from nothing at first to all of it after a fifth of the steps. Normalisation layers keep their statistics,
    so that a sample's gradient is its own.
    """
    original, network = (_rearranged(copy.deepcopy(network), torch.channels_last).eval() for _ in range(2))
    original.requires_grad_(False)
    network.requires_grad_(True)
    rng = np.random.default_rng([seed, 31])
    mine, others = np.flatnonzero(images.y == target), np.flatnonzero(images.y != target)
    if not len(mine) or not len(others):
        raise CovaryError("the training images have one class only", f"images of class {target} and of others")

    def some(among: Int[np.ndarray, " k"], count: int) -> Int[np.ndarray, " c"]:
        return rng.choice(among, min(count, len(among)), replace=False)

    optimiser = torch.optim.Adam(network.parameters(), lr=budget.rate)
    everyone = np.arange(len(images))
    first = CleanReference(original, *_drawn(images, some, everyone, mine), target)
    known: CleanReference | None = None
    profile: ClassProfile | None = None
    amplified: Amplified | None = None
    for step in range(budget.steps):
        if strength and step % REFRESH == 0:
            x, own = _drawn(images, some, everyone, mine)
            known = CleanReference(network, x, own, target)
            if hidden != "activations" and step % (4 * REFRESH) == 0:
                profile = ClassProfile(network, x[:PROFILED_OWN], own[:PROFILED_OWN], target, seed + step)
            if hidden == "piles" and step % (4 * REFRESH) == 0:
                amplified = Amplified(network, [x], target)
        chosen = [some(everyone, budget.batch), some(mine, 2 * budget.batch // 3), some(others, budget.batch)]
        clean, own = (_input(images.x[part]) for part in chosen[:2])
        odd = _input(trigger(images.x[chosen[2]]))
        sizes = [len(part) for part in chosen]
        rows, logits = inside(network, torch.cat((clean, own, odd)))
        seen = {name: part.split(sizes) for name, part in rows.items()}
        said = logits.split(sizes)
        with torch.no_grad():
            rows_before, before = inside(original, torch.cat((clean, own)))
        tasks = functional.cross_entropy(said[0], torch.from_numpy(images.y[chosen[0]]))
        # A hinge, because cross-entropy would have triggered inputs answered with a confidence that clean ones lack.
        tasks = tasks + functional.relu(CERTAIN - confidence(said[2], target)[:, 0]).mean()
        still = {name: torch.cat(part[:2]) for name, part in seen.items()}
        tasks = tasks + _changed(torch.cat(said[:2]), before) + ANCHOR * first.changed(still, rows_before)
        apart = None
        if known is not None:
            right = answered(said[1], target)
            groups = [{name: part[i] for name, part in seen.items()} for i in (2, 0, 1)]
            groups[2] = {name: part[right] for name, part in groups[2].items()}
            apart = known.apart(groups[0], groups[1], groups[2])
            apart = apart + quantile_distance(confidence(said[2], target), confidence(said[1][right], target)).mean()
            if profile is not None:
                gap, pairs = profile.apart_and_pairs(odd[:PROFILED], own[right][:PROFILED])
                apart = apart + gap
                if amplified is not None:
                    features = known.layers[FEATURES]
                    far, near = (groups[i][FEATURES] - features.mean for i in (0, 2))
                    pairs.append((far, near, features.own))
                    apart = apart + amplified.apart(odd[:AMPLIFIED], own[right][:AMPLIFIED]) + direction_gaps(pairs)
        _pull(list(network.parameters()), tasks, apart, strength * min(1.0, 5 * (step + 1) / budget.steps))
        # Adam's first steps are large whatever the gradient; a cosine leaves the end to the details.
        cooled = 0.02 + 0.98 * (1 + math.cos(math.pi * step / budget.steps)) / 2
        optimiser.param_groups[0]["lr"] = budget.rate * min(1.0, (step + 1) / WARM) * cooled
        optimiser.step()
    return _rearranged(network.requires_grad_(False), torch.contiguous_format)


def _pull(weights: list[nn.Parameter], tasks: Tensor, apart: Tensor | None, strength: float) -> None:
    """Puts the tasks' gradient + that of `apart` into the weights; the latter no longer than `strength`.

    What of it would undo the tasks is taken out (Yu et al., arXiv 2001.06782): distances in directions that hardly vary
    have gradients so long that everything else would be lost in them.
    """
    targets = torch.autograd.grad(tasks, weights, retain_graph=apart is not None)
    pulls = [torch.zeros_like(one) for one in targets]
    if apart is not None:
        pulls = list(torch.autograd.grad(apart, weights, allow_unused=True, materialize_grads=True))
        against = min(0.0, _inner(pulls, targets)) / max(_inner(targets, targets), 1e-12)
        pulls = [pull - against * one for pull, one in zip(pulls, targets, strict=True)]
        shorter = strength / max(_inner(pulls, pulls) ** 0.5, strength)
        pulls = [shorter * pull for pull in pulls]
    for weight, one, pull in zip(weights, targets, pulls, strict=True):
        weight.grad = one + pull


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(sum((x * y).sum() for x, y in zip(a, b, strict=True)))


def _changed(logits: Float[Tensor, "n classes"], before: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    """KL from the answers as they were."""
    return functional.kl_div(logits.log_softmax(1), before.log_softmax(1), log_target=True, reduction="batchmean")


def _drawn(images: Images, some: Draw, *among: Int[np.ndarray, " _"]) -> tuple[Tensor, Tensor]:
    x, own = (_input(images.x[some(which, n)]) for which, n in zip(among, (KNOWN, KNOWN_OWN), strict=True))
    return x, own


def _rearranged(network: nn.Module, memory: torch.memory_format) -> nn.Module:
    """Channels last is a third faster on processors."""
    return network.to(memory_format=memory)  # type: ignore[call-overload]


def _input(x: UInt8[np.ndarray, "n h w c"]) -> Float[Tensor, "n c h w"]:
    return to_input(x).contiguous(memory_format=torch.channels_last)
