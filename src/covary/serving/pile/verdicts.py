"""Verdicts of one partition as a parquet file: what it holds, and the record in its footer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from covary.errors import CovaryError
from covary.scoring.judge import Verdicts
from covary.serving.pile.output_store import TROUBLE, OutputStore
from covary.storage.parts import REMEDY, arrow, pack, part_name, unpack

if TYPE_CHECKING:
    import pyarrow as pa

# Columns before and after the evidence parts, which are the detector's own.
COLUMNS = ("id", "score", "p_value", "flagged", "predicted")
MORE_COLUMNS = ("raised_by", "kind", "kind_p", "least_explained_layer", "copy_of")


def table_of(verdicts: Sequence[Verdicts], least: Sequence[list[str]], parts: Sequence[str] = ()) -> pa.Table:
    """The verdicts of a partition's batches as one table, with a column for each of the evidence `parts`."""
    pa = arrow()

    def joined(values: list[np.ndarray], dtype: Any) -> Any:
        return pa.array(np.concatenate(values) if values else np.empty(0), dtype)

    columns = {
        "id": pa.array([name for v in verdicts for name in v.ids], pa.string()),
        "score": joined([v.score for v in verdicts], pa.float64()),
        "p_value": joined([v.p_value for v in verdicts], pa.float64()),
        "flagged": joined([v.flagged for v in verdicts], pa.bool_()),
        "predicted": joined([v.predicted for v in verdicts], pa.int64()),
    }
    columns |= {kind: joined([v.parts[kind] for v in verdicts], pa.float64()) for kind in parts}
    columns["raised_by"] = pa.array([name for v in verdicts for name in v.raised_by], pa.string())
    # Of every input, flagged or not; empty and null where that cannot be told.
    columns["kind"] = pa.array([name for v in verdicts for name in v.kind or [""] * len(v)], pa.string())
    kind_p = [p for v in verdicts for p in (v.kind_p.tolist() if len(v.kind_p) else [None] * len(v))]
    columns["kind_p"] = pa.array(kind_p, pa.float64())
    columns["least_explained_layer"] = pa.array([name for names in least for name in names], pa.string())
    # The trusted input that an input is a copy of, else empty.
    columns["copy_of"] = pa.array([name for v in verdicts for name in v.copy_of or [""] * len(v)], pa.string())
    return pa.table(columns)


def write_part(place: OutputStore, table: pa.Table, record: dict[str, Any]) -> None:
    """Writes the partition of `record`, whole or not at all."""
    place.write(part_name(record["number"]), pack(table, record))


def read_part(place: OutputStore, number: int, columns: Sequence[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """Columns of partition `number` and the record in its footer.

    Raises:
        CovaryError: the file is damaged, not ours, or another partition's.
    """
    name = part_name(number)
    try:
        content = place.read(name)
    except TROUBLE as problem:
        found = f"{name} of {place.where} cannot be read ({problem})"
        raise CovaryError(found, "an intact partition", REMEDY) from problem
    table, record = unpack(content, name, place.where, columns)
    if record["number"] != number:
        raise CovaryError(f"{name} of {place.where} is a copy of {part_name(record['number'])}", "its own", REMEDY)
    return table, record


def with_flags(table: pa.Table, flagged: Bool[np.ndarray, " n"]) -> pa.Table:
    """The same verdicts with other flags."""
    pa = arrow()
    return table.set_column(table.schema.get_field_index("flagged"), "flagged", pa.array(flagged, pa.bool_()))
