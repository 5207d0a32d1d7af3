"""Tables: which cells at which size, one TOML file each in the folder `tables`."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

from covary.errors import CovaryError, unknown_name
from covary_bench.cell import Cell

SCALES = ("ci", "small", "paper")
TABLES = ("vision", "networks", "adaptive", "adversarial", "ood", "mechanisms", "hard", "sensitivity", "language")


@dataclass(frozen=True)
class Size:
    """How large the cells of a table are at one scale.

    Attributes:
        what, datasets, seeds: their product is the cells; `extra` names more.
        trusted, clean, anomalous: images of each kind a cell; trusted ones the same number a class.
        sampling: further clean images for samplers that need a loss.
        baselines: names, or empty for all that take no hours.
        ways: further ways to score by covary itself (see `scoring.WAYS`).
    """

    what: Sequence[str]
    datasets: Sequence[str]
    seeds: Sequence[int] = (0,)
    extra: Sequence[str] = ()
    trusted: int = 500
    clean: int = 250
    anomalous: int = 250
    sampling: int = 0
    baselines: Sequence[str] = ()
    ways: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """One table at one scale.

    Attributes:
        name, scale, title: what it is.
        maker: who makes its cases (see `makers.MAKERS`).
        tuning: cells that settings were chosen on; averaged apart.
        fpr: the false-alarm rate that calibrated figures are told at.
        size: how large it is.
    """

    name: str
    scale: str
    title: str
    maker: str
    size: Size
    tuning: Sequence[str] = ()
    fpr: float = 0.05

    @property
    def cells(self) -> list[Cell]:
        """Every cell, seeds outermost so that a first seed of everything comes before the second."""
        s = self.size
        names = [f"{what}/{dataset}/{seed}" for seed in s.seeds for dataset in s.datasets for what in s.what]
        return [Cell.parse(name) for name in dict.fromkeys([*names, *s.extra])]


def read(name: str) -> dict[str, Any]:
    """The TOML of that name among the package's tables."""
    file = resources.files("covary_bench").joinpath("tables", f"{name}.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def table(name: str, scale: str) -> Table:
    """The table of that name at that scale."""
    if name not in TABLES:
        raise unknown_name("table", name, (*TABLES, "all", "speed", "tune", "pack"))
    if scale not in SCALES:
        raise unknown_name("scale", scale, SCALES)
    return from_toml(name, scale, read(name))


def from_toml(name: str, scale: str, content: dict[str, Any]) -> Table:
    """A table from what its TOML says; an unknown key is told."""
    if scale not in content:
        raise CovaryError(f"the table {name} has no scale {scale}", f"a section [{scale}]")
    known = {field.name for field in fields(Size)}
    for key in content[scale]:
        if key not in known:
            raise unknown_name(f"setting of the table {name}", key, sorted(known))
    own = {key: content[key] for key in ("title", "maker", "tuning", "fpr") if key in content}
    return Table(name=name, scale=scale, size=Size(**content[scale]), **own)
