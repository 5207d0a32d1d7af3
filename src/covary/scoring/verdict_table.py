"""Verdicts as people handle them in Python: sliced, looped over, as a table, and in words or HTML in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np

from covary.errors import CovaryError, missing_extra

if TYPE_CHECKING:
    from pandas import DataFrame

    from covary.scoring.judge import Verdicts

# Inputs named in a notebook, and bars of its histogram.
WORST, BARS = 5, 32
WIDTH, HEIGHT = 320, 64


@dataclass(frozen=True)
class Verdict:
    """What covary says of one input; see `Verdicts` for each number."""

    id: str
    score: float
    p_value: float
    flagged: bool
    predicted: int
    parts: dict[str, float]
    raised_by: str
    copy_of: str = ""
    kind: str = ""
    kind_p: float | None = None


class VerdictTable:
    """What `Verdicts` can do beside holding columns.

    `verdicts[3]` and `verdicts["name"]` are one `Verdict`; a slice, a mask or a list of positions gives `Verdicts`.
    """

    @overload
    def __getitem__(self, key: int | np.integer | str) -> Verdict: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int] | Sequence[bool] | np.ndarray) -> Verdicts: ...
    def __getitem__(self, key: Any) -> Verdict | Verdicts:
        """One input by position or name, or some of them by slice, mask or positions.

        Raises:
            KeyError, IndexError: no input of that name or position, as of dictionaries and lists.
        """
        own = cast("Verdicts", self)
        if isinstance(key, str):
            if key not in own.ids:
                raise KeyError(key)
            key = own.ids.index(key)
        if isinstance(key, int | np.integer):
            return next(iter(own._taken(np.arange(len(own))[[int(key)]])))
        chosen = np.arange(len(own))[key if isinstance(key, slice) else np.asarray(key, _kind_of(key))]
        return own._taken(chosen)

    def _taken(self, positions: np.ndarray) -> Verdicts:
        own = cast("Verdicts", self)
        changes: dict[str, Any] = {}
        for field in fields(own):
            value = getattr(own, field.name)
            if isinstance(value, dict):
                changes[field.name] = {name: column[positions] for name, column in value.items()}
            elif len(value) != len(own):  # left away by whoever made them
                changes[field.name] = value
            elif isinstance(value, list):
                changes[field.name] = [value[i] for i in positions.tolist()]
            else:
                changes[field.name] = value[positions]
        return replace(own, **changes)

    def __iter__(self) -> Iterator[Verdict]:
        """One `Verdict` after the other, in order."""
        own = cast("Verdicts", self)
        raised = own.raised_by
        for i, name in enumerate(own.ids):
            yield Verdict(
                name, float(own.score[i]), float(own.p_value[i]), bool(own.flagged[i]), int(own.predicted[i]),
                {part: float(values[i]) for part, values in own.parts.items()}, raised[i],
                own.copy_of[i] if own.copy_of else "", own.kind[i] if own.kind else "",
                float(own.kind_p[i]) if len(own.kind_p) else None,
            )  # fmt: skip

    @property
    def worst(self) -> Verdicts:
        """The same verdicts, the highest scores first."""
        own = cast("Verdicts", self)
        return own._taken(np.argsort(-own.score, kind="stable"))

    def to_pandas(self) -> DataFrame:
        """A table with the ids as its index and a column each for what `results.csv` holds of a verdict.

        Raises:
            CovaryError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise missing_extra("pandas", "pandas") from None
        own = cast("Verdicts", self)
        columns: dict[str, Any] = {
            "score": own.score, "p_value": own.p_value, "flagged": own.flagged, "predicted": own.predicted, **own.parts,
        }  # fmt: skip
        if own.parts:
            columns["raised_by"] = own.raised_by
        if own.kind:
            columns |= {"kind": own.kind, "kind_p": own.kind_p}
        if own.copy_of:
            columns["copy_of"] = own.copy_of
        return pd.DataFrame(columns, index=pd.Index(own.ids, name="id"))

    def __repr__(self) -> str:
        own = cast("Verdicts", self)
        if not len(own):
            return "Verdicts(0 inputs)"
        first = next(iter(own.worst[:1]))
        return (
            f"Verdicts({len(own)} inputs, {int(own.flagged.sum())} flagged; highest: {first.id!r}, "
            f"score {first.score:.3g}, p = {first.p_value:.2g})"
        )

    def _repr_html_(self) -> str:
        """Counts, a histogram of the scores and the worst inputs, in colours of light and dark notebooks alike."""
        own = cast("Verdicts", self)
        n, flagged = len(own), int(own.flagged.sum())
        parts = [f"<div><b>{flagged:,} of {n:,} inputs flagged</b>"]
        if n:
            parts.append(_histogram(own.score, own.flagged))
            parts.append("<table><thead><tr><th>highest scores</th><th>score</th><th>p</th><th>verdict</th>"
                         "<th>predicted</th><th>raised by</th></tr></thead><tbody>")  # fmt: skip
            for one in own.worst[:WORST]:
                cells = (one.id, f"{one.score:.3g}", f"{one.p_value:.2g}", "flagged" if one.flagged else "passed",
                         str(one.predicted), one.raised_by if one.flagged else "")  # fmt: skip
                parts.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
            parts.append("</tbody></table>")
        return "".join(parts) + "</div>"


def _kind_of(key: Any) -> Any:
    """Dtype of an index: a mask stays one, and an empty list names no position."""
    array = np.asarray(key)
    if array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        return array.dtype
    if array.size == 0:
        return np.int64
    raise CovaryError(f"verdicts picked by {array.dtype} values", "positions, a mask, a slice, or one name")


def _histogram(score: np.ndarray, flagged: np.ndarray) -> str:
    """Bars of the scores as SVG: those of flagged inputs in orange on top of the others."""
    finite = np.isfinite(score)
    if not finite.any():
        return ""
    edges = np.histogram_bin_edges(score[finite], BARS)
    every, odd = (np.histogram(score[chosen], edges)[0] for chosen in (finite, finite & flagged))
    width, most, bars = WIDTH / BARS, max(int(every.max()), 1), []
    for i in range(BARS):
        full, top = HEIGHT * every[i] / most, HEIGHT * odd[i] / most
        for y, height, colour in ((HEIGHT - full + top, full - top, "#7f8ea3"), (HEIGHT - full, top, "#e8710a")):
            if height > 0:
                bars.append(f'<rect x="{i * width:.1f}" y="{y:.1f}" width="{width - 1:.1f}" '
                            f'height="{height:.1f}" fill="{colour}"/>')  # fmt: skip
    label = f"scores from {edges[0]:.3g} to {edges[-1]:.3g}"
    return (
        f'<div><svg role="img" aria-label="{label}" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(bars)}</svg><br><small>{label}, flagged in orange</small></div>'
    )
