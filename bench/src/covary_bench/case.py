"""What a cell is scored on, whatever its modality: the runner knows cases by this protocol alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from covary_bench.baselines.material import Baseline
from covary_bench.cell import Cell
from covary_bench.prepared import Prepared
from covary_bench.scoring import Scored
from covary_bench.table import Table

Say = Callable[[str], None]
Record = Mapping[str, Any]


@runtime_checkable
class Case(Protocol):
    """A cell's case: made once, asked by every detector.

    Attributes:
        work: where rows, scores and the result of the cell are kept.
        baselines: who is compared on it.
    """

    work: Path
    baselines: Mapping[str, Baseline]

    def __init__(self, table: Table, cell: Cell, cache: Path) -> None: ...

    def check(self) -> None:
        """Raises CovaryError where no such table can have the cell."""
        ...

    def make(self, device: str, say: Say) -> Path:
        """The folder of the case, made unless it is there; drops what `work` keeps of an earlier case of that name."""
        ...

    def current(self) -> bool:
        """Whether what `work` keeps, if anything, is of the case as it would be made now."""
        ...

    def prepared(self, device: str) -> Prepared:
        """Trusted samples, inputs and all that detectors may ask of them, computed once."""
        ...

    def settings(self, name: str) -> dict[str, Any]:
        """Settings of a baseline."""
        ...

    def figures(self, scored: Scored, prepared: Prepared) -> dict[str, Any]:
        """Every figure of one detector."""
        ...

    def facts(self, prepared: Prepared, found: Mapping[str, Scored]) -> dict[str, Any]:
        """What is told beside detectors' figures: the victim, clusters, rates on hard inputs."""
        ...


@dataclass(frozen=True)
class Modality:
    """How tables of a kind of input are run and told.

    Attributes:
        case: (table, cell, cache) -> the case of that cell.
        record: (table, cells by name, where they were run) -> the record with its means.
        write: (record, folder) -> the files written there.
        markdown: the record as Markdown, one of those files.
        main: main figures of a record.
        marked: cells of a record that are missing or failed, and why.
        line: one finished cell in a line.
    """

    case: Callable[[Table, Cell, Path], Case]
    record: Callable[[Table, Mapping[str, dict[str, Any]], Mapping[str, Any]], dict[str, Any]]
    write: Callable[[Record, Path], list[Path]]
    markdown: Callable[[Record], str]
    main: Callable[[Record], dict[str, Any]]
    marked: Callable[[Record], Mapping[str, str]]
    line: Callable[[Record], str]


def modality(table: Table) -> Modality:
    """Images or texts, by the table's maker."""
    if table.maker == "language":
        from covary_bench.texts.case import TEXTS

        return TEXTS
    from covary_bench.images.case import IMAGES

    return IMAGES
