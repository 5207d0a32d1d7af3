"""Makers of cases, one a kind of table: (cell, size, cache, folder) -> the case's files in that folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from covary.bench.cell import Cell
from covary.bench.makers import adversarial, backdoor, hard, hidden, ood, sensitivity, several
from covary.bench.table import Size
from covary.errors import unknown_name

Maker = Callable[[Cell, Size, Path, Path], Path]

MAKERS: dict[str, Maker] = {
    "backdoor": backdoor.make,
    "hidden": hidden.make,
    "adversarial": adversarial.make,
    "ood": ood.make,
    "several": several.make,
    "hard": hard.make,
    "sensitivity": sensitivity.make,
}


def maker(name: str) -> Maker:
    """The maker called `name` in `MAKERS`."""
    if name not in MAKERS:
        raise unknown_name("maker", name, MAKERS)
    return MAKERS[name]
