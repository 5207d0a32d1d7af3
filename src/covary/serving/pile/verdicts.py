"""Verdicts of one partition as a parquet file: what it holds, and the record in its footer."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from covary.errors import CovaryError, missing_extra
from covary.scoring.judge import Verdicts
from covary.serving.pile.output_store import TROUBLE, OutputStore

if TYPE_CHECKING:
    import pyarrow as pa

# Columns before and after the evidence parts, which are the detector's own.
COLUMNS = ("id", "score", "p_value", "flagged", "predicted")
MORE_COLUMNS = ("raised_by", "least_explained_layer")
KEY = b"covary"


def arrow() -> Any:
    """pyarrow, which the extra `ray` brings."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "ray") from None
    return pyarrow


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
    columns["least_explained_layer"] = pa.array([name for names in least for name in names], pa.string())
    return pa.table(columns)


def digest_of(table: pa.Table) -> str:
    """sha256 over ids, scores, p-values, predictions and parts, in order; to the bit, and blind to who is flagged."""
    digest = hashlib.sha256()
    for name in table.column_names:
        if name in ("flagged", *MORE_COLUMNS):
            continue
        column = table[name].combine_chunks()
        digest.update(f"{name};{len(column)};".encode())
        if name == "id":
            digest.update("\0".join(column.to_pylist()).encode())
        elif not column.null_count:
            values = column.to_numpy(zero_copy_only=False)
            digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def write_part(place: OutputStore, name: str, table: pa.Table, record: dict[str, Any]) -> None:
    """Writes a partition, whole or not at all, with `record` in its footer."""
    pa, sink = arrow(), io.BytesIO()
    text = json.dumps(record, sort_keys=True, allow_nan=False).encode()
    pa.parquet.write_table(table.replace_schema_metadata({KEY: text}), sink, compression="zstd")
    place.write(name, sink.getvalue())


def read_part(place: OutputStore, name: str, columns: Sequence[str] | None = None) -> tuple[pa.Table, dict[str, Any]]:
    """Columns of a partition (None = all), and the record in its footer.

    Raises:
        CovaryError: the file is damaged or not ours.
    """
    pa = arrow()
    remedy = "remove that file and run the same command again"
    try:
        with place.open(name) as raw, pa.parquet.ParquetFile(raw) as file:
            text = (file.schema_arrow.metadata or {}).get(KEY)
            table = file.read(columns=None if columns is None else list(columns))
    except (*TROUBLE, pa.lib.ArrowException) as problem:
        raise CovaryError(f"{name} of {place.where} is damaged ({problem})", "an intact partition", remedy) from problem
    if text is None:
        raise CovaryError(f"{name} of {place.where} was not written by covary", "an intact partition", remedy)
    return table, json.loads(text)


def with_flags(table: pa.Table, flagged: Bool[np.ndarray, " n"]) -> pa.Table:
    """The same verdicts with other flags."""
    pa = arrow()
    return table.set_column(table.schema.get_field_index("flagged"), "flagged", pa.array(flagged, pa.bool_()))
