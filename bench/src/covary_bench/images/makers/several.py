"""One victim with several backdoors, or with adversarial inputs beside its backdoor: which mechanisms are there?

A cell names them joined by `+`: `badnets+blended`, `badnets+blended+wanet`, `badnets+pgd-linf`. The i-th backdoor wants
class i.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from torch import nn

from covary.errors import CovaryError
from covary_bench.cell import Cell
from covary_bench.images import attacks, datasets, victims
from covary_bench.images.case_files import Group, write_case
from covary_bench.images.datasets import Images
from covary_bench.images.ingredients import AttackedNetwork, Cutter, attacked_network, test_images
from covary_bench.images.makers.adversarial import perturbed
from covary_bench.images.makers.backdoor import triggered
from covary_bench.images.training import TrainingPlan, train
from covary_bench.table import Size


def poisoned_by_all(images: Images, names: list[str], seed: int) -> Images:
    """Training images with every attack's share of poison, no image twice; the i-th attack's get the label i."""
    shape = (images.x.shape[1], images.x.shape[2], images.x.shape[3])
    x, y = images.x.copy(), images.y.copy()
    order = np.random.default_rng([seed, 31]).permutation(len(images))
    for label, name in enumerate(names):
        attack = attacks.attack(name)
        if attack.make is None or attack.clean_label:
            raise CovaryError(f"{name} cannot share a victim", "attacks with a fixed trigger that change labels")
        chosen, order = np.split(order, [round(attack.ratio * len(images))])
        x[chosen], y[chosen] = attack.trigger(shape, seed)(x[chosen]), label
        if attack.make_noise is not None:
            chosen, order = np.split(order, [round(attack.noise_ratio * len(images))])
            x[chosen] = attack.make_noise(shape, seed, seed + 1)(x[chosen])
    return Images(x, y, images.id)


def shared_victim(kind: str, names: list[str], seed: int, cache: Path, device: str = "cpu") -> list[AttackedNetwork]:
    """One network with all these backdoors, trained into the cache unless it is there; an entry for each backdoor."""
    if kind not in victims.VICTIMS:
        raise CovaryError(f"{kind} is no kind of victim", ", ".join(victims.VICTIMS))
    recipe, home = victims.VICTIMS[kind], cache / "victims" / f"{kind}-{'+'.join(names)}-s{seed}"
    network = recipe.make().eval()
    if not (home / "facts.json").is_file():
        images = datasets.load(recipe.train)
        if recipe.images < len(images):
            images = images.take(np.random.default_rng([seed, 7]).permutation(len(images))[: recipe.images])
        longer = replace(recipe, images=len(images), epochs=recipe.epochs * recipe.patience, augment="")
        part = home.with_name(f"{home.name}-{os.getpid()}.part")
        part.mkdir(parents=True)
        checkpoint = home.with_name(f"{home.name}.checkpoint")
        poisoned = poisoned_by_all(images, names, seed)
        trained = train(longer, poisoned, TrainingPlan(seed=seed), checkpoint, device).network
        save_file({name: value.contiguous() for name, value in trained.state_dict().items()}, part / "w.safetensors")
        (part / "facts.json").write_text(json.dumps(_facts(trained, recipe, names, seed)))
        shutil.rmtree(home, ignore_errors=True)
        part.rename(home)
        checkpoint.unlink(missing_ok=True)
    network.load_state_dict(load_file(home / "w.safetensors"))
    facts = json.loads((home / "facts.json").read_text())
    return [
        AttackedNetwork(
            network.requires_grad_(False), recipe.factory, home / "w.safetensors", recipe.test, target=label,
            trigger=attacks.attack(name).trigger(recipe.shape, seed), facts=facts,
        )
        for label, name in enumerate(names)
    ]  # fmt: skip


def _facts(network: nn.Module, recipe: victims.Recipe, names: list[str], seed: int) -> dict[str, object]:
    test, success = datasets.load(recipe.test), {}
    for label, name in enumerate(names):
        others = test.x[test.y != label]
        seen = victims.predictions(network, attacks.attack(name).trigger(recipe.shape, seed)(others))
        success[name] = float((seen == label).mean())
    accuracy = float((victims.predictions(network, test.x) == test.y).mean())
    return {"clean_accuracy": accuracy, "attack_success": min(success.values()), "attack_success_each": success}


def odd_groups(owners: list[AttackedNetwork], names: list[str], cutter: Cutter, n: int, seed: int) -> list[Group]:
    """n inputs of every mechanism: triggered ones of each backdoor, then adversarial ones."""
    found = [
        triggered(owner, cutter, n, name) if name in attacks.ATTACKS else perturbed(name, owner, cutter, n, seed)
        for owner, name in zip([*owners, *owners[:1] * len(names)], names, strict=False)
    ]
    return found


def make(cell: Cell, size: Size, cache: Path, folder: Path, device: str = "cpu") -> Path:
    """Clean inputs and `anomalous` inputs of every mechanism that the cell names."""
    names = cell.what.split("+")
    backdoors = [name for name in names if name in attacks.ATTACKS]
    ordered = backdoors + [name for name in names if name not in backdoors]
    if len(backdoors) > 1:
        owners = shared_victim(cell.dataset, backdoors, cell.seed, cache, device)
    else:
        owners = [attacked_network(cell, backdoors[0] if backdoors else None, cache, device)]
    cutter = test_images(owners[0].dataset, cell.seed)
    trusted, clean = cutter.balanced(size.trusted), cutter.first(size.clean)
    odd = odd_groups(owners, ordered, cutter, size.anomalous, cell.seed)
    return write_case(
        folder, owners[0], "mechanisms", trusted, [Group("clean", clean, False), *odd], cell.seed, None,
        {"mechanisms": ordered},
    )  # fmt: skip
