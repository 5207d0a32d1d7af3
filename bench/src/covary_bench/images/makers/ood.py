"""A network without a backdoor: clean test images against images of another data set, near or far."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from covary_bench.cell import Cell
from covary_bench.images import foreign
from covary_bench.images.case_files import Group, write_case
from covary_bench.images.ingredients import attacked_network, test_images
from covary_bench.table import Size


def make(cell: Cell, size: Size, cache: Path, folder: Path, device: str = "cpu") -> Path:
    """Trusted and clean images, and images of the foreign set that the cell names."""
    owner = attacked_network(cell, None, cache, device)
    cutter = test_images(owner.dataset, cell.seed)
    trusted, clean = cutter.balanced(size.trusted), cutter.first(size.clean)
    found = foreign.load(cell.what, clean.x.shape[1:])
    order = np.random.default_rng([cell.seed, 2]).permutation(len(found))[: size.anomalous]
    groups = [Group("clean", clean, False), Group(cell.what, found.take(order), True)]
    facts = {"distance": foreign.FOREIGN[cell.what].distance}
    sampling = cutter.first(size.sampling)
    return write_case(folder, owner, "out-of-distribution", trusted, groups, cell.seed, sampling, facts)
