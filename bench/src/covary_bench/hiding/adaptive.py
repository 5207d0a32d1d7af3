"""Attackers who know us: a victim trained further so that its triggered inputs look clean, inside.

Activation-obfuscated: triggered activations are drawn to clean ones of the attacker's class in every layer, by moments
and nearest neighbours (after Bailey et al., arXiv 2412.09565). Gradient-obfuscated: the numbers of our own profile,
of gradients and activations alike, are drawn to clean ones too. Pile-obfuscated: so are survival under amplified
weights, and how far triggered rows reach along a direction of their own. Strength is raised until activation baselines
see next to nothing, or three budgets are spent; every attempt is kept with what it cost in accuracy and success.

    python -m covary_bench.hiding.adaptive --victim cache/victims/cifar10-badnets-t0-s0 --hide activations
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import nn

from covary.errors import CovaryError
from covary.storage import folders
from covary_bench.baselines.images.knn import nearest_neighbours
from covary_bench.baselines.mahalanobis import log_distances
from covary_bench.hiding.images import Budget, Hidden, hide
from covary_bench.images import attacks, datasets
from covary_bench.images.attacks.clean_reference import FEATURES, inside
from covary_bench.images.measuring import measure
from covary_bench.images.training import to_input
from covary_bench.images.victims import FAILED, VICTIMS, Victim, load_trigger, load_victim, read_victim

STRENGTHS = (8.0, 16.0, 32.0)  # one a budget
PRICE = 0.1  # clean accuracy that the attacker will give at most
BASELINES = ("KNN on features", "Mahalanobis", "Mahalanobis by layer")
SEEN_NO_MORE = (0.4, 0.6)  # AUROC of the activation baselines at which the attacker is content


@dataclass(frozen=True)
class Attempt:
    """One attempt: how hard the attacker hid, what was left of the network, and what baselines still saw.

    Attributes:
        strength: weight of hiding against the two tasks.
        clean_accuracy, attack_success: over the test images, fractions.
        auroc: of each activation baseline, triggered against clean test inputs (see `activation_auroc`).
    """

    hidden: Hidden
    strength: float
    clean_accuracy: float
    attack_success: float
    auroc: Mapping[str, float]

    @property
    def content(self) -> bool:
        """Whether the attack works and every activation baseline is down between 0.4 and 0.6."""
        hidden = all(SEEN_NO_MORE[0] <= value <= SEEN_NO_MORE[1] for value in self.auroc.values())
        return hidden and self.attack_success >= FAILED


Judge = Callable[[nn.Module, datasets.Images, attacks.Trigger, int], dict[str, float]]


def activation_auroc(
    network: nn.Module, test: datasets.Images, trigger: attacks.Trigger, target: int, judged: int = 500
) -> dict[str, float]:
    """AUROC of three activation baselines of the benchmark, as it asks them: clean inputs answered right against
    triggered ones that reach the attacker's class.

    `judged` images to learn from, as many clean ones, and as many to trigger; fewer where there are fewer.
    """
    n = min(judged, len(test) // 3)
    known, clean, odd = (test.take(np.arange(k * n, (k + 1) * n)) for k in range(3))
    odd = odd.take(np.flatnonzero(odd.y != target))
    (rows, said), (queries, answers) = (
        _pooled(network, known.x),
        _pooled(network, np.concatenate((clean.x, trigger(odd.x)))),
    )
    truth = np.repeat([0, 1], [n, len(odd)])
    kept = answers == np.concatenate((clean.y, np.full(len(odd), target)))
    if len(np.unique(truth[kept])) < 2:
        return dict.fromkeys(BASELINES, 0.5)  # nothing left to tell apart
    pairs = {name: log_distances(part, said, queries[name][kept]) for name, part in rows.items()}
    scores = [
        nearest_neighbours(rows[FEATURES], queries[FEATURES][kept]),
        pairs.pop(FEATURES)[1],
        np.sum([(far - held.mean()) / max(float(held.std()), 1e-6) for held, far in pairs.values()], axis=0),
    ]
    return {name: float(roc_auc_score(truth[kept], one)) for name, one in zip(BASELINES, scores, strict=True)}


@torch.no_grad()
def _pooled(network: nn.Module, x: UInt8[np.ndarray, "n h w c"]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    found = [inside(network, to_input(x[i : i + 250])) for i in range(0, len(x), 250)]
    rows = {name: torch.cat([part[name] for part, _ in found]).double().numpy() for name in found[0][0]}
    return rows, torch.cat([logits.argmax(1) for _, logits in found]).numpy()


def escalate(
    victim: Victim,
    folder: Path,
    hidden: Hidden,
    *,
    strengths: Sequence[float] = STRENGTHS,
    budget: Budget | None = None,
    judge: Judge = activation_auroc,
) -> list[Attempt]:
    """Every attempt of hiding a victim's trigger, in order; `choice` is the attacker's.

    Each attempt begins with the victim and has the next strength, until `judge` sees nothing any more or the strengths
    are used up. Attempts are kept in `folder`/NAME-hidden-HIDDEN/STRENGTH: weights and figures, so that a
    killed run goes on with the next one.

    Raises:
        CovaryError: a victim without a backdoor, or with one that moves every class.
    """
    if victim.attack is None or not isinstance(victim.target, int):
        raise CovaryError(f"{victim.weights} has no backdoor to one class", "an all-to-one victim")
    recipe, trigger, network = VICTIMS[victim.kind], load_trigger(victim), load_victim(victim)
    images, test = datasets.load(recipe.train), datasets.load(recipe.test)
    home = folder / f"{Path(victim.weights).parent.name}-hidden-{hidden}"
    attempts = []
    for strength in strengths:
        place = home / f"{strength:g}"
        if (place / "attempt.json").is_file():
            attempts.append(Attempt(**json.loads((place / "attempt.json").read_text())))
        else:
            tried = hide(network, images, trigger, victim.target, hidden, strength, victim.seed, budget or Budget())
            accuracy, success, _ = measure(tried, test, victim.attack, victim.target, victim.seed, trigger)
            auroc = judge(tried, test, trigger, victim.target)
            attempts.append(Attempt(hidden, strength, accuracy, float(success or 0.0), auroc))
            with folders.atomic_folder(place, "attempt") as part:
                save_file(tried.state_dict(), part / "weights.safetensors")
                (part / "attempt.json").write_text(json.dumps(asdict(attempts[-1]), indent=1) + "\n")
        if attempts[-1].content:
            break
    return attempts


def choice(attempts: Sequence[Attempt], before: float) -> Attempt:
    """The last attempt whose attack succeeds on 80 % and that costs at most `PRICE` of the clean accuracy `before`.

    Where none does, the last one whose attack succeeds; where none does either, the most successful one.
    """
    working = [attempt for attempt in attempts if attempt.attack_success >= FAILED]
    paid = [attempt for attempt in working if attempt.clean_accuracy >= before - PRICE]
    return (paid or working or [max(attempts, key=lambda attempt: attempt.attack_success)])[-1]


def main(arguments: list[str] | None = None) -> int:
    """Command line; prints every attempt; returns the exit code."""
    prog = "python -m covary_bench.hiding.adaptive"
    parser = argparse.ArgumentParser(prog=prog, description="Hide a victim's trigger.")
    parser.add_argument("--victim", type=Path, required=True, help="folder of a trained victim")
    parser.add_argument("--hide", choices=["activations", "gradients", "piles"], default="activations")
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
