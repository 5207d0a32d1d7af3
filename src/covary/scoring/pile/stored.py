"""What is stored of inputs between the two passes over a pile, so that the second needs neither rows nor the network.

The first pass measures inputs alone and adds up second moments (`store`); the second joins what was stored with what
the whole pile shows (`judged`). Stored are the numbers themselves, in float64: verdicts are those of rows in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from covary.scoring.copies import Found
from covary.scoring.judge import Judge, Verdicts
from covary.scoring.pile.raw_numbers import RAW
from covary.scoring.pile.together import AT_ONCE, Blocks, Sums, Together, added, look, views
from covary.scoring.rows import Rows
from covary.scoring.scores.combined import Measured

Group = Literal["evidence", "parts", "numbers"]
GROUPS: tuple[Group, ...] = ("evidence", "parts", "numbers")
# Of every split, group and kind in turn: how many columns it has.
Layout = list[tuple[int, Group, str, int]]


@dataclass(frozen=True)
class Stored:
    """Numbers of some inputs.

    Attributes:
        ids, predicted: as of `Rows`.
        found: which trusted inputs they are copies of.
        columns: numbers of all splits side by side, (n, columns).
        layout: what the columns are.
    """

    ids: Sequence[str]
    predicted: Int[np.ndarray, " n"]
    found: Found
    columns: Float[np.ndarray, "n columns"]
    layout: Layout

    def of_split(self, k: int) -> tuple[Measured, Blocks]:
        """What split k measured alone, but for its score, and its numbers of each kind."""
        groups: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
        start = 0
        for split, group, kind, width in self.layout:
            own = self.columns[:, start : start + width]
            start += width
            if split == k:
                groups[group][kind] = own if group == "numbers" else own[:, 0]
        numbers, parts = groups["numbers"], groups["parts"]
        residuals = {kind: own for kind, own in numbers.items() if kind in parts and kind not in RAW}
        return Measured(np.full(len(self.ids), np.nan), parts, residuals, groups["evidence"]), numbers


def store(judge: Judge, rows: Rows) -> tuple[Stored, Sums, Verdicts]:
    """The first pass over some rows: what is stored of them, their second moments, and verdicts on each input alone."""
    stored, sums, alone = _measure(judge, rows)
    return stored, sums, judge.verdicts(rows.ids, rows.predicted, alone, stored.found)


def _measure(judge: Judge, rows: Rows) -> tuple[Stored, Sums, list[Measured]]:
    layout: Layout = []
    columns: list[np.ndarray] = []
    sums: Sums = []
    alone: list[Measured] = []
    for k, (evidence, score) in enumerate(zip(views(judge), judge.scores_, strict=True)):
        measured = score.measure(rows)
        numbers = evidence.numbers(rows, measured)
        alone.append(measured)
        sums.append(evidence.moments(numbers))
        for group, blocks in zip(GROUPS, (measured.evidence, measured.parts, numbers), strict=True):
            for kind, own in blocks.items():
                own = np.asarray(own, np.float64).reshape(len(rows), -1)
                columns.append(own)
                layout.append((k, group, kind, own.shape[1]))
    found = judge.copies_.find(rows)
    stored = Stored(list(rows.ids), rows.predicted, found, np.concatenate(columns, axis=1), layout)
    return stored, sums, alone


def verdicts_together(judge: Judge, rows: Rows) -> list[Verdicts]:
    """Both passes over a pile that is in memory: verdicts on it, in pieces, with every input measured once.

    The same as those of `judge_together`, which measures twice and keeps nothing.
    """
    pieces = [rows.take(np.arange(a, min(a + AT_ONCE, len(rows)))) for a in range(0, len(rows), AT_ONCE)]
    measured = [_measure(judge, piece)[:2] for piece in pieces]
    seen = look(judge, added(sums for _, sums in measured))
    return [judged(seen, stored) for stored, _ in measured]


def judged(seen: Judge, stored: Stored) -> Verdicts:
    """The second pass: verdicts of a judge that has looked at the pile (see `together.look`) on what was stored."""
    measured = []
    for k, score in enumerate(seen.scores_):
        assert isinstance(score, Together)
        measured.append(score.join(*stored.of_split(k)))
    return seen.verdicts(stored.ids, stored.predicted, measured, stored.found)
