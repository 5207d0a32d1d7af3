"""Makers of cases, one a kind of table, with what a cell of theirs may name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from covary.errors import unknown_name
from covary_bench.cell import Cell
from covary_bench.images import attacks, foreign, public, victims
from covary_bench.images.makers import adversarial, backdoor, hard, hidden, ood, sensitivity, several
from covary_bench.table import Size

Make = Callable[[Cell, Size, Path, Path, str], Path]


@dataclass(frozen=True)
class Maker:
    """One kind of case.

    Attributes:
        make: (cell, size, cache, folder, device) -> the case's files in that folder.
        known: names that a cell may begin with.
        options: names of settings that a cell may have.
        several: whether a cell may join names by `+`.
    """

    make: Make
    known: Callable[[], Collection[str]]
    options: Collection[str] = ()
    several: bool = False


def _backdoors() -> list[str]:
    return ["clean", *attacks.ATTACKS]


MAKERS: dict[str, Maker] = {
    "backdoor": Maker(backdoor.make, _backdoors, ("ratio", "target")),
    "hidden": Maker(hidden.make, lambda: attacks.ATTACKS, ("hidden", "steps", "ratio", "target")),
    "adversarial": Maker(adversarial.make, lambda: attacks.ADVERSARIAL),
    "ood": Maker(ood.make, lambda: foreign.FOREIGN),
    "several": Maker(several.make, lambda: [*attacks.ATTACKS, *attacks.ADVERSARIAL], several=True),
    "hard": Maker(hard.make, lambda: hard.KINDS, ("attack", "ratio")),
    "sensitivity": Maker(
        sensitivity.make, _backdoors, ("trusted", "poisoned", "imbalance", "ratio", "target")
    ),
}  # fmt: skip


def maker(name: str) -> Maker:
    """The maker called `name` in `MAKERS`."""
    if name not in MAKERS:
        raise unknown_name("maker", name, MAKERS)
    return MAKERS[name]


def checked(name: str, cell: Cell) -> Cell:
    """The cell, if a table of that maker can have it.

    Raises:
        CovaryError: a name, a victim or an option that nobody knows.
    """
    found = maker(name)
    for part in cell.what.split("+") if found.several else [cell.what]:
        if part not in found.known():
            raise unknown_name(f"name in the cell {cell},", part, found.known())
    if cell.dataset not in {*victims.VICTIMS, *public.NETWORKS}:
        raise unknown_name("victim or public network", cell.dataset, [*victims.VICTIMS, *public.NETWORKS])
    for option in cell.options:
        if option not in found.options:
            raise unknown_name(f"option of the cell {cell},", option, found.options or ["none"])
    return cell
