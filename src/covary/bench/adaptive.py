"""Attackers who know us: a victim trained further so that its triggered inputs look clean, inside.

Activation-obfuscated: triggered activations are drawn to clean ones of the attacker's class in every layer, by moments
and nearest neighbours (after Bailey et al., arXiv 2412.09565). Gradient-obfuscated: the numbers of our own profile,
of gradients and activations alike, are drawn to clean ones too. Strength is raised until activation baselines
see next to nothing, or three budgets are spent; every attempt is kept with what it cost in accuracy and success.

    python -m covary.bench.adaptive --victim cache/victims/cifar10-badnets-t0-s0 --hide activations
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.nn import functional

from covary import store
from covary.bench import attacks, datasets
from covary.bench.attacks.own_profile import (
    OwnProfile,
    activations,
    margins,
    moments_and_neighbours,
    weight_gradients,
)
from covary.bench.measuring import measure
from covary.bench.training import to_input
from covary.bench.victims import VICTIMS, Victim, load_trigger, load_victim, read_victim
from covary.errors import CovaryError

Hidden = Literal["activations", "gradients"]
STRENGTHS = (1.0, 2.0, 4.0)  # one a budget
SEEN_NO_MORE = (0.4, 0.6)  # AUROC of the activation baselines at which the attacker is content


@dataclass(frozen=True)
class Budget:
    """What one attempt may cost: steps, images a step of each kind, learning rate."""

    steps: int = 300
    batch: int = 48
    rate: float = 5e-4


@dataclass(frozen=True)
class Attempt:
    """One attempt: how hard the attacker hid, what was left of the network, and what baselines still saw.

    Attributes:
        strength: weight of hiding against the two tasks.
        clean_accuracy, attack_success: over the test images, fractions.
        auroc: of each activation baseline, triggered against clean test inputs of the attacker's class.
    """

    hidden: Hidden
    strength: float
    clean_accuracy: float
    attack_success: float
    auroc: Mapping[str, float]

    @property
    def content(self) -> bool:
        """Whether every activation baseline is down between 0.4 and 0.6."""
        return all(SEEN_NO_MORE[0] <= value <= SEEN_NO_MORE[1] for value in self.auroc.values())


def hide(
    network: nn.Module,
    images: datasets.Images,
    trigger: attacks.Trigger,
    target: int,
    hidden: Hidden,
    strength: float,
    seed: int,
    budget: Budget,
) -> nn.Module:
    """A copy of `network`, trained further: both tasks + `strength` * how far triggered inputs are from clean ones.

    A step takes clean images of all classes, the same number of triggered ones, and clean images of the target class
    to be alike. Normalisation layers keep their statistics, so that a sample's gradient is its own.
    """
    network = copy.deepcopy(network).eval().requires_grad_(True)
    rng = np.random.default_rng([seed, 31])
    own, others = np.flatnonzero(images.y == target), np.flatnonzero(images.y != target)
    if not len(own) or not len(others):
        raise CovaryError("the training images have one class only", f"images of class {target} and of others")
    optimiser = torch.optim.Adam(network.parameters(), lr=budget.rate)
    for _ in range(budget.steps):
        some = images.take(rng.choice(len(images), min(budget.batch, len(images)), replace=False))
        clean, labels = to_input(some.x), torch.from_numpy(some.y)
        poisoned = to_input(trigger(images.x[rng.choice(others, min(budget.batch, len(others)), replace=False)]))
        alike = to_input(images.x[rng.choice(own, min(budget.batch, len(own)), replace=False)])
        wanted = torch.full((len(poisoned),), target)
        tasks = functional.cross_entropy(network(clean), labels) + functional.cross_entropy(network(poisoned), wanted)
        distance = torch.zeros(())
        if strength:
            own_class = torch.full((len(alike),), target)
            distance = moments_and_neighbours(
                _rows(network, poisoned, wanted, hidden),
                _rows(network, alike, own_class, hidden),
                _rows(network, clean, labels, hidden),
            )
            if hidden == "gradients":
                profile = OwnProfile(network, alike, own_class, seed)
                distance = distance + profile.score(poisoned, wanted).clamp_min(1.0).log().mean()
        optimiser.zero_grad()
        (tasks + strength * distance).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
    return network.eval().requires_grad_(False)


def _rows(network: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], hidden: Hidden) -> list[Tensor]:
    """What is to look alike: pooled activations of every layer; with gradients also their lengths and the margin."""
    rows = list(activations(network, x).values())
    if hidden == "gradients":
        lengths = [
            g.square().sum(1, keepdim=True).add(1e-12).sqrt().log() for g in weight_gradients(network, x, y).values()
        ]
        rows += [*lengths, margins(network, x, y)[:, None]]
    return rows


Judge = Callable[[nn.Module, UInt8[np.ndarray, "a h w c"], UInt8[np.ndarray, "b h w c"]], dict[str, float]]


@torch.no_grad()
def activation_auroc(
    network: nn.Module, clean: UInt8[np.ndarray, "a h w c"], triggered: UInt8[np.ndarray, "b h w c"]
) -> dict[str, float]:
    """AUROC of two activation baselines on inputs answered alike: nearest neighbours and Mahalanobis distance.

    Both on pooled activations of every layer, standardised on half of the clean inputs and averaged over the layers;
    the other half is judged against the triggered ones.
    """
    half = len(clean) // 2
    parts = [_pooled(network, x) for x in (clean[:half], clean[half:], triggered)]
    truth = np.repeat([0, 1], [len(clean) - half, len(triggered)])
    scores: dict[str, list[np.ndarray]] = {"KNN on activations": [], "Mahalanobis on activations": []}
    for name, known in parts[0].items():
        asked = np.concatenate((parts[1][name], parts[2][name]))
        mean, std = known.mean(0), known.std(0) + 1e-6
        known, asked = (known - mean) / std, (asked - mean) / std
        near = NearestNeighbors(n_neighbors=min(5, len(known) - 1)).fit(known)
        scores["KNN on activations"].append(np.log(near.kneighbors(asked)[0].mean(1) + 1e-9))
        scores["Mahalanobis on activations"].append(np.log(LedoitWolf().fit(known).mahalanobis(asked) + 1e-9))
    return {name: float(roc_auc_score(truth, np.mean(layers, axis=0))) for name, layers in scores.items()}


def _pooled(network: nn.Module, x: UInt8[np.ndarray, "n h w c"]) -> dict[str, np.ndarray]:
    found = [activations(network, to_input(x[i : i + 250])) for i in range(0, len(x), 250)]
    return {name: torch.cat([part[name] for part in found]).double().numpy() for name in found[0]}


def escalate(
    victim: Victim,
    folder: Path,
    hidden: Hidden,
    *,
    strengths: Sequence[float] = STRENGTHS,
    budget: Budget | None = None,
    judge: Judge = activation_auroc,
    judged: int = 500,
) -> list[Attempt]:
    """Every attempt of hiding a victim's trigger, in order; the last one is the attacker's choice.

    Each attempt goes on from the one before with the next strength, until `judge` sees nothing any more or the
    strengths are used up. Attempts are kept in `folder`/NAME-hidden-HIDDEN/STRENGTH: weights and figures, so that a
    killed run goes on with the next one.

    Raises:
        CovaryError: a victim without a backdoor, or with one that moves every class.
    """
    if victim.attack is None or not isinstance(victim.target, int):
        raise CovaryError(f"{victim.weights} has no backdoor to one class", "an all-to-one victim")
    recipe, trigger, network = VICTIMS[victim.kind], load_trigger(victim), load_victim(victim)
    images, test = datasets.load(recipe.train), datasets.load(recipe.test)
    home = folder / f"{Path(victim.weights).parent.name}-hidden-{hidden}"
    own = test.x[test.y == victim.target][:judged]
    odd = trigger(test.x[test.y != victim.target][:judged])
    attempts = []
    for strength in strengths:
        place = home / f"{strength:g}"
        if (place / "attempt.json").is_file():
            attempts.append(Attempt(**json.loads((place / "attempt.json").read_text())))
            network.load_state_dict(load_file(place / "weights.safetensors"))
        else:
            network = hide(network, images, trigger, victim.target, hidden, strength, victim.seed, budget or Budget())
            accuracy, success, _ = measure(network, test, victim.attack, victim.target, victim.seed, trigger)
            auroc = judge(network, own, odd)
            attempts.append(Attempt(hidden, strength, accuracy, float(success or 0.0), auroc))
            with store.whole_folder(place, "attempt") as part:
                save_file(network.state_dict(), part / "weights.safetensors")
                (part / "attempt.json").write_text(json.dumps(asdict(attempts[-1]), indent=1) + "\n")
        if attempts[-1].content:
            break
    return attempts


def main(arguments: list[str] | None = None) -> int:
    """Command line; prints every attempt; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m covary.bench.adaptive", description="Hide a victim's trigger.")
    parser.add_argument("--victim", type=Path, required=True, help="folder of a trained victim")
    parser.add_argument("--hide", choices=["activations", "gradients"], default="activations")
    parser.add_argument("--out", type=Path, default=datasets.cache_folder() / "adaptive")
    parser.add_argument("--steps", type=int, default=Budget().steps)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        victim = read_victim(options.victim)
        attempts = escalate(victim, options.out, options.hide, budget=Budget(steps=options.steps))
    except (CovaryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"before: clean {victim.clean_accuracy:.4f}, attack {victim.attack_success}")
    for attempt in attempts:
        print(json.dumps(asdict(attempt)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
