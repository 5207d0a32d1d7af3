"""Poisoned training sets cleaned: who is removed, and what a network retrained on the rest has learned.

    python -m covary_bench.studies.clean --cache cache --out bench/results

A training set is poisoned once, so that there is one to clean: WaNet's images are fixed too, where the benchmark's
victims see new ones every epoch. A thousand of its clean images are trusted, as if somebody had looked at them.
Spectral Signatures and Activation Clustering get the same labels and remove as many clean images, by the truth.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import nn

from covary.detector import Detector
from covary.features.cached import CachedRows
from covary.scoring.rows import Rows
from covary.storage import folders
from covary.training import Cleaned, clean
from covary_bench.baselines.images.activation_clustering import activation_clustering
from covary_bench.baselines.images.spectral_signatures import spectral_signatures
from covary_bench.baselines.material import Material
from covary_bench.images import attacks, datasets
from covary_bench.images.datasets import Images, cache_folder
from covary_bench.images.measuring import measure
from covary_bench.images.training import TrainingPlan, train
from covary_bench.images.victims import VICTIMS
from covary_bench.records import rounded, write_lines

KIND, TARGET = "cifar10", 0
# In the order in which they are measured.
CELLS = (
    ("badnets", 0.1), ("blended", 0.1), ("wanet", 0.1), ("badnets", 0.01), ("blended", 0.01), ("wanet", 0.01),
)  # fmt: skip
# WaNet is slow to learn from a set that does not change.
EPOCHS = {"wanet": 6}
# Attacks that succeed less often have taught nothing that retraining could show the loss of.
LEARNED = 0.2
TRUSTED = 1_000
REMOVED = 0.01
# Rivals' names in the record, and what they do.
RIVALS = {"spectral signatures": spectral_signatures, "activation clustering": activation_clustering}
OURS = "covary"
# A network that has learned its training set by heart: so many images, so many epochs, so many of them judged.
BY_HEART = {"images": 3_000, "epochs": 20}
JUDGED = 3_000


@dataclass(frozen=True)
class Cell:
    """One poisoned training set and its folder in the cache."""

    attack: str
    ratio: float
    seed: int
    home: Path

    @property
    def name(self) -> str:
        """As in the record."""
        return f"{self.attack} {100 * self.ratio:g} % s{self.seed}"

    @property
    def folder(self) -> Path:
        """Weights and figures of this cell."""
        return self.home / f"{self.attack}-p{self.ratio:g}-s{self.seed}"

    @property
    def trigger(self) -> attacks.Trigger:
        """What opens the backdoor."""
        return attacks.attack(self.attack).trigger(VICTIMS[KIND].shape, self.seed)

    @cached_property
    def training(self) -> tuple[Images, Int[np.ndarray, " n"]]:
        """The poisoned training set as the victim saw it, and what was done to each image (see `attacks.poison`)."""
        recipe = VICTIMS[KIND]
        images = datasets.load(recipe.train)
        order = np.random.default_rng([self.seed, 7]).permutation(len(images))
        images = images.take(order[: recipe.images])
        x, y, done = attacks.poison(
            images.x, images.y, attacks.attack(self.attack), TARGET, self.seed, ratio=self.ratio
        )
        return Images(x, y, images.id), done

    @cached_property
    def trusted(self) -> Int[np.ndarray, " t"]:
        """Places of the clean training images that somebody has looked at."""
        clean = np.flatnonzero(self.training[1] == 0)
        return np.sort(np.random.default_rng([self.seed, 23]).choice(clean, TRUSTED, replace=False))

    def network(self, name: str, keep: Bool[np.ndarray, " n"] | None = None) -> nn.Module:
        """The network trained on the whole set or on what is kept of it, from the cache where it is there."""
        path = self.folder / f"{name}.safetensors"
        recipe = VICTIMS[KIND]
        if path.is_file():
            network = recipe.make()
            network.load_state_dict(load_file(path))
            return network.eval().requires_grad_(False)
        images = self.training[0] if keep is None else self.training[0].take(keep)
        recipe = replace(recipe, images=len(images), epochs=EPOCHS.get(self.attack, recipe.epochs))
        begun = time.perf_counter()
        network = train(recipe, images, TrainingPlan(seed=self.seed)).network
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, part)
        part.rename(path)
        print(f"{self.name}: {name} trained in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        return network.requires_grad_(False)

    def figures(self, network: nn.Module) -> dict[str, float]:
        """Clean accuracy and attack success over the test set."""
        test = datasets.load(VICTIMS[KIND].test)
        accuracy, success, _ = measure(network, test, self.attack, TARGET, self.seed, self.trigger)
        return {"accuracy": accuracy, "success": float(success or 0.0)}

    @cached_property
    def judged_ones(self) -> Bool[np.ndarray, " n"]:
        """All but the trusted ones, which nothing removes."""
        return ~np.isin(np.arange(len(self.training[0])), self.trusted)

    def judged(self, detector: Detector, n: int) -> tuple[Cleaned, Rows]:
        """The first images of the training set judged by a fitted detector, and their rows."""
        images = self.training[0].first(n)
        rows = detector.rows(detector.open((images.x, images.y), ids=images.id))
        known = copy.copy(detector)
        vars(known).update(extractor=CachedRows(detector.extractor, rows))
        return clean(known, (images.x, images.y), ids=images.id, remove_at=REMOVED), rows


def fitted(network: nn.Module, trusted: Images) -> Detector:
    """Our detector on trusted images with their labels."""
    return Detector(network, evidence="thorough", batch_size=128).fit((trusted.x, trusted.y), ids=trusted.id)


def rival(name: str, cell: Cell, detector: Detector, rows: Rows) -> Float[np.ndarray, " n"]:
    """A rival's score of the training images of these rows, within the classes that the training set says."""
    y = cell.training[0].y
    known = detector.trusted_rows
    assert rows.features is not None
    assert known.features is not None
    material = Material(
        trusted=replace(known, predicted=y[cell.trusted]),
        queries=replace(rows, predicted=y[: len(rows)]),
        trusted_features=np.asarray(known.features, np.float64),
        query_features=np.asarray(rows.features, np.float64),
    )
    return RIVALS[name](material)


def removed_at(score: Float[np.ndarray, " n"], clean: Bool[np.ndarray, " n"], rate: float) -> Bool[np.ndarray, " n"]:
    """The highest scores of all, as many as take this share of the clean ones with them at most."""
    ordered = np.sort(score[clean])[::-1]
    return score > ordered[int(rate * len(ordered))]


def shares(
    remove: Bool[np.ndarray, " n"], done: Int[np.ndarray, " n"], judged: Bool[np.ndarray, " n"]
) -> dict[str, float]:
    """Recall and precision of poisoned images, and the share of clean ones that goes with them."""
    poisoned, fine = done == 1, judged & (done == 0)
    return {
        "recall": float(remove[poisoned].mean()),
        "clean": float(remove[fine].mean()),
        "precision": float(poisoned[remove].mean()) if remove.any() else 0.0,
    }


def removals(cell: Cell, n: int) -> dict[str, Any]:
    """Which of the first images each way removes, the answers, and the seconds it took; kept in the cell's folder."""
    work = cell.folder / "removed.npz"
    images, done = cell.training
    if not work.is_file():
        begun = time.perf_counter()
        detector = fitted(cell.network("victim"), images.take(cell.trusted))
        cleaned, rows = cell.judged(detector, n)
        seconds = time.perf_counter() - begun
        masks: dict[str, Any] = {
            OURS: cleaned.odd,
            "each alone": detector.judge.judge(rows).p_value <= REMOVED,
            "with labels": cleaned.odd | cleaned.mislabelled,
            "cards": np.isin(cleaned.card, cleaned.attack_cards),
        }
        fine = (cell.judged_ones & (done == 0))[: len(rows)]
        ranks = {f"{OURS} ranked": cleaned.score, **{name: rival(name, cell, detector, rows) for name in RIVALS}}
        masks |= {name: removed_at(score, fine, REMOVED) for name, score in ranks.items()}
        masks |= {"predicted": cleaned.predicted, "seconds": np.array(seconds)}
        np.savez(work, **{name.replace(" ", "_"): mask for name, mask in masks.items()})
    with np.load(work) as file:
        return {name.replace("_", " "): file[name] for name in file.files}


def measured(cell: Cell, retrained: tuple[str, ...], n: int) -> dict[str, Any]:
    """Everything about one cell, and about networks trained without what these ways remove; kept in its folder.

    Where not the whole set was judged, nothing is trained anew.
    """
    kept = cell.folder / "figures.json"
    found: dict[str, Any] = folders.read_json(kept, "figures of a cell") if kept.is_file() else {}
    images, done = cell.training
    if not found:
        victim = cell.network("victim")
        found = {"victim": cell.figures(victim)}
        masks = removals(cell, n)
        predicted, found["seconds"] = masks.pop("predicted"), float(masks.pop("seconds"))
        found["judged"] = n = len(predicted)
        found["learned"] = float((predicted == images.y[:n])[done[:n] == 1].mean())
        found["removed"] = {name: shares(mask, done[:n], cell.judged_ones[:n]) for name, mask in masks.items()}
        found["retrained"] = {}
    for name in retrained:
        whole = found.get("judged", len(images)) == len(images)
        if name not in found["retrained"] and found["victim"]["success"] >= LEARNED and whole:
            found["retrained"][name] = cell.figures(cell.network(f"without {name}", ~removals(cell, n)[name]))
            folders.write_json(kept, found)
    folders.write_json(kept, found)
    print(cell.name, found, file=sys.stderr, flush=True)
    return found


def trusted_elsewhere(home: Path, by_heart: bool) -> dict[str, Any]:
    """Clean training images removed where trusted ones are training images, and where the network never saw them."""
    cell = Cell("badnets", 0.1, 0, home / "by-heart" if by_heart else home)
    kept = cell.folder / "trusted-elsewhere.json"
    if kept.is_file():
        return folders.read_json(kept, "figures of a cell")
    images, done = cell.training
    if by_heart:
        images, done = images.take(np.arange(BY_HEART["images"])), done[: BY_HEART["images"]]
        vars(cell)["training"] = images, done
        path = cell.folder / "victim.safetensors"
        if not path.is_file():
            recipe = replace(VICTIMS[KIND], images=len(images))
            network = train(recipe, images, TrainingPlan(seed=0, epochs=BY_HEART["epochs"])).network
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    network = cell.network("victim")
    test = datasets.load(VICTIMS[KIND].test)
    some = np.arange(min(JUDGED, len(images)))
    pile = images.take(some)
    found: dict[str, Any] = {"victim": cell.figures(network)}
    fine = (done[some] == 0) & ~np.isin(some, cell.trusted)
    for name, trusted in (("training", images.take(cell.trusted)), ("test", test.first(TRUSTED))):
        cleaned = clean(fitted(network, trusted), (pile.x, pile.y), ids=pile.id, remove_at=REMOVED)
        found[name] = {
            "recall": float(cleaned.odd[done[some] == 1].mean()),
            "clean": float(cleaned.odd[fine].mean()),
            "clean at 5 %": float((cleaned.p_value[fine] <= 0.05).mean()),
            "right": float((cleaned.predicted == pile.y)[fine].mean()),
        }
    folders.write_json(kept, found)
    print(cell.name, "trusted elsewhere", found, file=sys.stderr, flush=True)
    return found


def record(home: Path, out: Path, n: int) -> None:
    """Measures what is missing, the cheaper things first, and writes `clean.json` after each.

    Of sets not judged yet the first `n` images are.
    """
    cells = [Cell(attack, ratio, 0, home) for attack, ratio in CELLS]
    about = {"images": VICTIMS[KIND].images, "trusted": TRUSTED, "rate": REMOVED, "by heart": BY_HEART}
    found: dict[str, Any] = {"about": about, "cells": {}, "trusted elsewhere": {}}

    def take(cell: Cell, *retrained: str) -> None:
        own = measured(cell, retrained, n)
        # Seconds stay in the cache: whatever else ran is in them.
        found["cells"][cell.name] = {key: value for key, value in own.items() if key != "seconds"}
        write_lines(out, rounded(found), depth=3)

    for cell in cells[:3]:
        take(cell)
    take(cells[0], OURS)
    for name, heart in (("as the victims", False), ("by heart", True)):
        found["trusted elsewhere"][name] = trusted_elsewhere(home, heart)
    for cell in cells:
        take(cell, OURS)
    for cell in cells:
        take(cell, OURS, *RIVALS)


def main() -> None:
    """Measures what is missing and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=cache_folder())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--judged", type=int, default=VICTIMS[KIND].images, help="of a set not judged yet, so many")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record(arguments.cache / "clean", arguments.out / "clean.json", arguments.judged)


if __name__ == "__main__":
    main()
