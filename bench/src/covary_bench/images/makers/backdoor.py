"""One backdoored victim: clean test images against triggered ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from covary.errors import CovaryError
from covary.runs.figures.quality import target_of
from covary_bench.cell import Cell
from covary_bench.images.case_files import Group, write_case
from covary_bench.images.datasets import Images
from covary_bench.images.ingredients import AttackedNetwork, Cutter, attacked_network, test_images
from covary_bench.table import Size


def triggered(owner: AttackedNetwork, cutter: Cutter, n: int, name: str = "triggered") -> Group:
    """n images with the trigger, of classes other than the target, or of the attack's source class.

    Ids and classes are the originals'.
    """
    if owner.trigger is None or owner.target is None:
        raise CovaryError(f"{owner.model} has no trigger", "a backdoored network")
    other = cutter.images.y != owner.target if isinstance(owner.target, int) else np.ones(len(cutter.images), bool)
    if owner.source is not None:
        other = cutter.images.y == owner.source
    images = cutter.first(n, other)
    targets = target_of(images.y, owner.target, int(cutter.images.y.max()) + 1)
    return Group(name, Images(owner.trigger(images.x), images.y, images.id), True, targets=targets)


def make(cell: Cell, size: Size, cache: Path, folder: Path, device: str = "cpu") -> Path:
    """Trusted, clean, triggered and sampling images of one victim."""
    owner = attacked_network(cell, None if cell.what == "clean" else cell.what, cache, device)
    cutter = test_images(owner.dataset, cell.seed)
    trusted, clean = cutter.balanced(size.trusted), cutter.first(size.clean)
    odd = triggered(owner, cutter, size.anomalous)
    sampling = cutter.first(size.sampling)
    groups = [Group("clean", clean, False), odd]
    return write_case(folder, owner, "backdoor", trusted, groups, cell.seed, sampling)
