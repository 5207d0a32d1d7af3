"""One backdoored victim under harder terms: few, poisoned or unbalanced trusted data, little poison, no backdoor.

Options of a cell: `trusted` a class, `poisoned` share of the trusted set that carries the trigger and the attacker's
label, `imbalance` ratio of the rarest class to the commonest, `ratio` of poisoned training images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from covary_bench.cell import Cell
from covary_bench.images.attacks import ATTACKS
from covary_bench.images.case_files import Group, write_case
from covary_bench.images.datasets import Images
from covary_bench.images.ingredients import attacked_network, joined, test_images
from covary_bench.images.makers.backdoor import triggered
from covary_bench.table import Size


def make(cell: Cell, size: Size, cache: Path, folder: Path, device: str = "cpu") -> Path:
    """The case of `backdoor` with the trusted set that the cell's options ask for; `clean` has no backdoor."""
    honest = cell.what == "clean"
    owner = attacked_network(cell, None if honest else cell.what, cache, device)
    cutter = test_images(owner.dataset, cell.seed)
    labels = np.unique(cutter.images.y)
    # The inputs are dealt first, so that every option is judged on the same ones.
    clean = cutter.first(size.clean)
    if honest:
        # The BadNets patch on a network that never saw it: nothing is there to be found.
        shape = (clean.x.shape[1], clean.x.shape[2], clean.x.shape[3])
        images = cutter.first(size.anomalous)
        patched = ATTACKS["badnets"].trigger(shape, cell.seed)(images.x)
        odd = Group("patched", Images(patched, images.y, images.id), False)
    else:
        odd = triggered(owner, cutter, size.anomalous)
    usual = max(1, round(size.trusted / len(labels)))
    most, rarest = int(cell.number("trusted", usual)), cell.number("imbalance", 1.0)
    steps = np.linspace(0, 1, len(labels))
    counts = {int(label): max(1, round(most * rarest**step)) for label, step in zip(labels, steps, strict=True)}
    trusted = cutter.per_class(counts)
    poisoned = 0 if honest else round(cell.number("poisoned", 0.0) * len(trusted))
    if poisoned:
        bad = triggered(owner, cutter, poisoned)
        assert bad.targets is not None
        kept = trusted.take(np.sort(np.random.default_rng(cell.seed).permutation(len(trusted))[poisoned:]))
        trusted = joined([kept, Images(bad.images.x, bad.targets, [f"poisoned {name}" for name in bad.images.id])])
    groups = [Group("clean", clean, False), odd]
    facts = {"n_poisoned_trusted": poisoned, "trusted_per_class": list(counts.values())}
    return write_case(folder, owner, "backdoor", trusted, groups, cell.seed, None, facts)
