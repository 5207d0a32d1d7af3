"""Rows of a real network on all CIFAR-10 test images, clean and made anomalous, computed once and kept in the cache.

    nice -n 10 python -m covary_bench.studies.pile.rows NETWORK KIND [--cache cache]

KIND is `clean`, `triggered`, a name in `attacks.ADVERSARIAL` or `CORRUPTIONS`, or `photos`. Anomalous inputs are made
of other images than clean ones: those of a victim of training images that it was not trained on, those of a public
network of test images set aside. So which anomalies there are says nothing of which clean inputs are left. The layers
amplified for survival are chosen on `CHOOSING` test images that no study deals out again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from covary.data.source import open_data
from covary.detector import Detector
from covary.errors import CovaryError
from covary.features.survival import Survival
from covary.scoring.rows import Batch, Rows
from covary.storage import folders
from covary.storage.detector import rows_from_arrays, rows_to_arrays
from covary_bench.images import attacks, datasets, public, victims
from covary_bench.images.attacks.adversarial import attack_in_batches
from covary_bench.images.corruptions import CORRUPTIONS
from covary_bench.images.datasets import Images
from covary_bench.images.ingredients import AttackedNetwork
from covary_bench.images.measuring import predictions

CHOOSING, ASIDE, MADE = 200, 3_000, 5_600
# Of networks made from a victim, which stand in small piles alone.
FEW, MOST_CORRUPTED = 2_400, 1_000


@dataclass(frozen=True)
class Stored:
    """Rows of some test images as they are or made anomalous.

    Attributes:
        rows: of the images, survival and all.
        y: class of each, -1 = none, (n,).
        target: the attacker's class, or None.
        harmless: whether they have no aim at all.
    """

    rows: Rows
    y: Int[np.ndarray, " n"]
    target: int | None
    harmless: bool = False

    def succeed(self) -> Int[np.ndarray, " k"]:
        """Positions of anomalous inputs that do what they were made for; all of those that have no aim."""
        if self.harmless:
            return np.arange(len(self.rows))
        if self.target is not None:
            return np.flatnonzero((self.rows.predicted == self.target) & (self.y != self.target))
        return np.flatnonzero((self.rows.predicted != self.y) | (self.y < 0))

    def take(self, index: Int[np.ndarray, " k"]) -> Stored:
        """Some of them."""
        return Stored(self.rows.take(index), self.y[index], self.target, self.harmless)


def order_of(n: int) -> Int[np.ndarray, " n"]:
    """Test images in random order; the first `CHOOSING` are for the choice of layers alone."""
    return np.random.default_rng(24).permutation(n)


def network_named(name: str, cache: Path) -> AttackedNetwork:
    """A public network by its name, or the victim in `cache`/victims/NAME, `cache`/NAME being tried as well."""
    if name in public.NETWORKS:
        found = public.NETWORKS[name]
        network = public.Normalised(public.load_public(name), found.mean, found.std).eval()
        factory = f"covary_bench.images.public:{found.factory.__name__}"
        trigger = attacks.trigger(found.trigger) if found.trigger else None
        weights = public.weights_path(name)
        return AttackedNetwork(network, factory, weights, found.dataset, found.mean, found.std, found.target, trigger)
    home = cache / "victims" / name
    if not home.is_dir():
        raise CovaryError(f"no network {name}", "a public network or a victim in the cache", "covary-bench victims")
    victim = victims.read_victim(home)
    assert isinstance(victim.target, int)
    return AttackedNetwork(
        victims.load_victim(victim), victim.factory, Path(victim.weights), "cifar10-test", target=victim.target,
        trigger=victims.load_trigger(victim) if victim.attack else None,
    )  # fmt: skip


def thorough(owner: AttackedNetwork) -> Callable[[np.ndarray, list[str]], Rows]:
    """What makes rows of images, with survival at depths chosen on the images set apart for it."""
    detector = Detector(owner.model, weights=owner.weights, evidence="thorough")
    extractor = detector.extractor

    def batches(x: np.ndarray, ids: list[str]) -> Iterator[Batch]:
        source = open_data(x, mean=owner.mean, std=owner.std).renamed(ids)
        return source.batches(detector.settings.batch_size)

    test = datasets.load(owner.dataset)
    some = test.take(order_of(len(test))[:CHOOSING])
    chosen = [extractor.placed(batch) for batch in batches(some.x, list(some.id))]
    extractor.survival = Survival(extractor.module, extractor.choose_logits).choose(chosen)
    return lambda x, ids: Rows.concatenate([extractor.rows(batch) for batch in batches(x, ids)])


def images_of(owner: AttackedNetwork, kind: str, victim: victims.Victim | None) -> tuple[np.ndarray, Images]:
    """Pixels of one kind and the images they are made of."""
    test = datasets.load(owner.dataset)
    order = order_of(len(test))[CHOOSING:]
    aside = 0 if victim else ASIDE
    if kind == "clean":
        images = test.take(order[aside:])
        return images.x, images
    if kind == "photos":
        images = datasets.load("photos-all")
        return images.x, images
    images = test.take(order[:ASIDE]) if victim is None else _unseen(victim)
    if kind in CORRUPTIONS:
        images = images.take(np.arange(len(images) - MOST_CORRUPTED, len(images)))
        return CORRUPTIONS[kind](images.x, 0), images
    if kind == "triggered":
        if owner.trigger is None:
            raise CovaryError(f"{owner.model} has no trigger", "a backdoored network")
        images = images.take(images.y != owner.target).first(MADE)
        return owner.trigger(images.x), images
    images = images.take(predictions(owner.network, images.x) == images.y).first(MADE)
    x = victims.to_input(images.x)
    return attack_in_batches(attacks.ADVERSARIAL[kind], owner.network, x, torch.from_numpy(images.y), 0).numpy(), images


def _unseen(victim: victims.Victim) -> Images:
    """Training images that `training.train` left out, as it draws them."""
    images = datasets.load(victims.VICTIMS[victim.kind].train)
    drawn = np.random.default_rng([victim.seed, 7]).permutation(len(images))
    return images.take(drawn[victim.train_images :])


def stored(
    name: str,
    kind: str,
    cache: Path,
    owner: AttackedNetwork | None = None,
    victim: Path | None = None,
) -> Stored:
    """Rows of a network on one kind of input, from the cache where they are there.

    `owner` stands for a network that neither is public nor a trained victim, under a name of its own; `victim` is the
    folder of the victim that it was made from.
    """
    home = cache / "pile" / name
    path, record = home / f"{kind}.safetensors", home / f"{kind}.json"
    if not record.is_file():
        owner = owner or network_named(name, cache)
        folder = owner.weights.parent if victim is None else victim
        known = victims.read_victim(folder) if (folder / "victim.json").is_file() else None
        x, images = images_of(owner, kind, known)
        if victim is not None:
            x, images = x[:FEW], images.first(FEW)
        arrays, parts = rows_to_arrays(thorough(owner)(x, [f"{kind}-{i}" for i in range(len(x))]), "rows")
        home.mkdir(parents=True, exist_ok=True)
        folders.write_arrays(path, {**arrays, "y": images.y})
        target = owner.target if kind == "triggered" else None
        record.with_suffix(".part").write_text(json.dumps({"parts": parts, "target": target}))
        record.with_suffix(".part").rename(record)
    arrays, facts = folders.read_arrays(path), json.loads(record.read_text())
    harmless = kind == "photos" or kind in CORRUPTIONS
    return Stored(rows_from_arrays(arrays, facts["parts"], "rows"), arrays["y"], facts["target"], harmless)


def main() -> None:
    """Computes rows ahead of the studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("kind", nargs="+")
    parser.add_argument("--cache", type=Path, default=datasets.cache_folder())
    options = parser.parse_args()
    torch.set_num_threads(1)
    for kind in options.kind:
        found = stored(options.network, kind, options.cache)
        print(options.network, kind, len(found.rows), "succeed:", len(found.succeed()), flush=True)


if __name__ == "__main__":
    main()
