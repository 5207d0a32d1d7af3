"""What covary sees of attackers who know it: hidden from activations, gradients, survival and piles; calibration bent.

    nice -n 10 python -m covary_bench.studies.pile.attackers [--victim NAME] [--deals 8] [--cache cache]

Networks are those that `hiding.adaptive` and `hiding.sharpened` left in the cache; each is compared with the victim it
was made from, on the same images. A second part salts piles with photos and with noisy images. Writes
`bench/results/pile-attackers.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from covary.runs.figures.quality import auroc
from covary_bench.hiding import adaptive
from covary_bench.images import datasets, victims
from covary_bench.studies.pile.dealt import WAYS, Deal, Material, caught, pile_of
from covary_bench.studies.pile.rows import network_named, stored

RESULTS = Path(__file__).resolve().parents[4] / "results" / "pile-attackers.json"
PAID = ("clean_accuracy", "attack_success", "strength", "share", "median_margin_ratio")
CLEAN, ODD = 500, (500, 26)
SALTED, SALTS = 1_500, (0, 75, 300, 600)
# Where an attack is seen alone, and where the pile alone sees it: network, triggered inputs of a salted pile.
ATTACKS = {"as trained": 15, "hidden from activations": 150}


def networks(name: str, cache: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Weights and what each cost: the victim, the choice of every attacker who hid, and the sharpened one."""
    victim = victims.read_victim(cache / "victims" / name)
    facts: dict[str, Any] = {"clean_accuracy": victim.clean_accuracy, "attack_success": victim.attack_success}
    found = {"as trained": (Path(victim.weights), facts)}
    for hidden in ("activations", "gradients", "piles"):
        home = cache / "adaptive" / f"{name}-hidden-{hidden}"
        folders = sorted(home.glob("*/attempt.json"), key=lambda path: float(path.parent.name))
        if folders:
            attempts = [adaptive.Attempt(**json.loads(path.read_text())) for path in folders]
            chosen = adaptive.choice(attempts, victim.clean_accuracy)
            own = home / f"{chosen.strength:g}"
            found[f"hidden from {hidden}"] = own / "weights.safetensors", json.loads((own / "attempt.json").read_text())
            strongest = folders[-1].parent
            if hidden == "piles" and strongest != own:
                facts = json.loads((strongest / "attempt.json").read_text())
                found["hidden from piles, at any price"] = strongest / "weights.safetensors", facts
    home = cache / "adaptive" / f"{name}-sharpened"
    if (home / "attempt.json").is_file():
        found["sharpened"] = home / "weights.safetensors", json.loads((home / "attempt.json").read_text())
    return found


def material_of(name: str, label: str, weights: Path, cache: Path, *salts: str) -> Material:
    """Rows of one network on clean and triggered images, and on odd but harmless ones."""
    kinds = ("clean", "triggered", *salts)
    if label == "as trained":
        parts = {kind: stored(name, kind, cache) for kind in kinds}
    else:
        owner = network_named(name, cache)
        owner.network.load_state_dict(load_file(weights))
        owner = replace(owner, weights=weights)
        home = cache / "victims" / name
        parts = {kind: stored(f"{name}, {label}", kind, cache, owner, home) for kind in kinds}
    return Material.of(parts.pop("clean"), **parts)


def one_deal(material: Material, seed: int) -> dict[str, list[float]]:
    """way -> AUROC and caught at 1 % of each pile, then false alarms at 1 and 5 % of the first."""
    found: dict[str, list[float]] = {}
    for is_thorough in (True, False):
        own = material if is_thorough else material.without_survival()
        rng = np.random.default_rng([seed, 4])
        known, left = own.draw(rng)
        piles = [(n, pile_of(left, {"triggered": n, "clean": CLEAN}, rng)) for n in ODD]
        deal = Deal(own, known, np.unique(np.concatenate([pile for _, pile in piles])), seed)
        for way, (together, survives) in WAYS.items():
            if survives != is_thorough:
                continue
            figures, alarms = [], []
            for n, pile in piles:
                verdicts = deal.verdicts(pile, together)
                figures += [auroc(verdicts.score, np.repeat([1, 0], [n, CLEAN])), caught(verdicts.p_value[:n], 0.01)]
                alarms += [caught(verdicts.p_value[n:], rate) for rate in (0.01, 0.05)]
            found[way] = [float(v) for v in (*figures, *alarms[:2])]
    return found


def salted(material: Material, kind: str, attack: int, seed: int) -> dict[str, list[list[float]]]:
    """way -> per number of odd inputs: caught of the attack, false alarms at 1 and 5 %, odd ones flagged at 1 %."""
    rng = np.random.default_rng([seed, 5])
    known, left = material.draw(rng)
    sizes = [{"triggered": attack, kind: n, "clean": SALTED - attack - n} for n in SALTS]
    piles = [pile_of(left, own, rng) for own in sizes]
    deal = Deal(material, known, np.unique(np.concatenate(piles)), seed)
    found: dict[str, list[list[float]]] = {}
    for way, together in (("together", True), ("alone", False)):
        for own, pile in zip(sizes, piles, strict=True):
            p = deal.verdicts(pile, together).p_value
            odd, salt, clean = np.split(p, np.cumsum(list(own.values()))[:-1])
            figures = [caught(odd, 0.01), caught(clean, 0.01), caught(clean, 0.05), caught(salt, 0.01)]
            found.setdefault(way, []).append(figures)
    return found


def mean_and_error(deals: list[Any]) -> list[Any]:
    """Over deals: means and standard errors, of the same shape."""
    every = np.array(deals, float)
    error = every.std(0, ddof=1) / np.sqrt(len(every))
    return [[_short(v) for v in of] if of.ndim == 1 else [[_short(v) for v in row] for row in of]
            for of in (every.mean(0), error)]  # fmt: skip


def _short(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def dealt(kept: Path, n: int, deal: Callable[[int], Any]) -> list[Any]:
    """Figures of n deals; those that the cache has are read."""
    deals: list[Any] = json.loads(kept.read_text()) if kept.is_file() else []
    for seed in range(len(deals), n):
        deals.append(deal(seed))
        kept.with_suffix(".part").write_text(json.dumps(deals))
        kept.with_suffix(".part").rename(kept)
    return deals[:n]


def main() -> None:
    """Measures every network there is, then salted piles of the victim itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victim", default="cifar10-badnets-t0-s0")
    parser.add_argument("--deals", type=int, default=8)
    parser.add_argument("--cache", type=Path, default=datasets.cache_folder())
    options = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"deals": options.deals, "networks": {}, "salted": []}
    home = options.cache / "pile" / options.victim
    found = networks(options.victim, options.cache)
    for label, (weights, facts) in found.items():
        material = material_of(options.victim, label, weights, options.cache)
        kept = home / f"attackers-{label.replace(' ', '-')}.json"
        deals = dealt(kept, options.deals, lambda seed, own=material: one_deal(own, seed))
        ways = {way: mean_and_error([deal[way] for deal in deals]) for way in WAYS}
        paid = {key: round(float(facts[key]), 4) for key in PAID if facts.get(key) is not None}
        record["networks"][label] = {"paid": paid, "ways": ways}
        print(label, facts, {way: own[0] for way, own in ways.items()}, flush=True)
    for label, attack in ATTACKS.items():
        for kind in ("photos", "noise"):
            material = material_of(options.victim, label, found[label][0], options.cache, kind)
            kept = home / f"salted-{label.replace(' ', '-')}-{kind}.json"
            deals = dealt(
                kept,
                options.deals,
                lambda seed, own=material, kind=kind, attack=attack: salted(own, kind, attack, seed),
            )
            ways = {way: mean_and_error([deal[way] for deal in deals]) for way in ("together", "alone")}
            record["salted"].append({"network": label, "attack": attack, "salt": kind, "salts": SALTS, **ways})
            print(record["salted"][-1], flush=True)
    RESULTS.write_text(json.dumps(record, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
