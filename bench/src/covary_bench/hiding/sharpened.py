"""A backdoored network trained further so that a share of clean inputs become overconfident: calibration is the aim.

Nothing is hidden. The attacker makes clean inputs that look odd, some of which calibrate, so that thresholds rise and
triggered inputs stay below. Which inputs: the brightest, so that fresh ones of that share behave alike.

    python -m covary_bench.hiding.sharpened --victim cache/victims/cifar10-badnets-t0-s0
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from covary.storage import folders
from covary_bench.hiding.images import Budget
from covary_bench.images import datasets
from covary_bench.images.attacks.own_profile import margins_of
from covary_bench.images.attacks.poisoning import Trigger
from covary_bench.images.datasets import Images
from covary_bench.images.measuring import measure
from covary_bench.images.training import to_input
from covary_bench.images.victims import VICTIMS, load_trigger, load_victim, read_victim

SHARE, FACTOR = 0.05, 3.0


def bright(x: UInt8[np.ndarray, "n h w c"], threshold: float) -> Bool[np.ndarray, " n"]:
    """Which images are brighter on average than a threshold in [0, 255]."""
    return x.mean((1, 2, 3)) > threshold


def sharpen(
    network: nn.Module, images: Images, trigger: Trigger, target: int, seed: int, budget: Budget, share: float = SHARE
) -> tuple[nn.Module, float]:
    """A copy of `network` whose margins on the brightest `share` of inputs are `FACTOR` times what they were, and the
    brightness from which on they are.

    Loss: log of how far those margins are from that, squared; on all other clean inputs KL from the answers as they
    were; cross-entropy of triggered inputs. Normalisation layers keep their statistics.
    """
    original, network = copy.deepcopy(network).eval(), copy.deepcopy(network).eval()
    original.requires_grad_(False)
    network.requires_grad_(True)
    rng = np.random.default_rng([seed, 37])
    threshold = float(np.quantile(images.x.mean((1, 2, 3)), 1 - share))
    is_bright = bright(images.x, threshold)
    chosen, rest, others = (np.flatnonzero(of) for of in (is_bright, ~is_bright, images.y != target))
    optimiser = torch.optim.Adam(network.parameters(), lr=budget.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, budget.rate, total_steps=budget.steps)
    for _ in range(budget.steps):
        a, b, c = (rng.choice(among, min(budget.batch, len(among)), replace=False) for among in (chosen, rest, others))
        x = to_input(np.concatenate((images.x[a], images.x[b], trigger(images.x[c]))))
        sizes = [len(a), len(b), len(c)]
        sharp, still, odd = network(x).split(sizes)
        with torch.no_grad():
            before = original(x[: len(a) + len(b)])
        loss = _margin_gap(sharp, before[: len(a)])
        kept = before[len(a) :].log_softmax(1)
        loss = loss + functional.kl_div(still.log_softmax(1), kept, log_target=True, reduction="batchmean")
        loss = loss + functional.cross_entropy(odd, torch.full((len(c),), target))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.requires_grad_(False), threshold


def _margin_gap(logits: Float[Tensor, "n c"], before: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    y = before.argmax(1)
    wanted = FACTOR * margins_of(before, y)
    return (margins_of(logits, y) - wanted).square().mean().log1p()


def main() -> None:
    """Trains one network and keeps it with what it cost beside the others of that victim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victim", type=Path, required=True, help="folder of a trained victim")
    parser.add_argument("--out", type=Path, default=datasets.cache_folder() / "adaptive")
    options = parser.parse_args()
    torch.set_num_threads(1)
    victim = read_victim(options.victim)
    assert isinstance(victim.target, int)
    recipe, trigger = VICTIMS[victim.kind], load_trigger(victim)
    images, test = datasets.load(recipe.train), datasets.load(recipe.test)
    network = load_victim(victim)
    made, threshold = sharpen(network, images, trigger, victim.target, victim.seed, Budget(steps=400))
    accuracy, success, _ = measure(made, test, victim.attack, victim.target, victim.seed, trigger)
    is_bright = bright(test.x, threshold)
    x = to_input(test.x[is_bright])
    with torch.no_grad():
        ratios = margins_of(made(x), network(x).argmax(1)) / margins_of(network(x), network(x).argmax(1))
    facts = {
        "clean_accuracy": accuracy, "attack_success": success, "share": float(is_bright.mean()),
        "median_margin_ratio": float(ratios.median()),
    }  # fmt: skip
    with folders.atomic_folder(options.out / f"{options.victim.name}-sharpened", "attempt") as part:
        save_file(made.state_dict(), part / "weights.safetensors")
        (part / "attempt.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
