"""Parquet files: one row an input, in a column of numbers (nested lists) or of encoded images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from covary.data.readers.base import checked_id
from covary.data.readers.python import INPUT_KEYS, raw_sample
from covary.errors import CovaryError, missing_extra
from covary.serving.pile.output_store import TROUBLE, filesystem
from covary.serving.pile.sources.values import decoded

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".parquet",)
AT_ONCE = 256


def opened(spec: str, file: str) -> Any:
    """A parquet file by its path within the filesystem of `spec`."""
    try:
        import pyarrow.lib
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("pyarrow", "ray") from None
    try:
        return pq.ParquetFile(filesystem(spec)[0].open(file, "rb"))
    except (*TROUBLE, pyarrow.lib.ArrowException) as problem:
        raise CovaryError(f"{file} cannot be read as parquet ({problem})", "an intact file") from problem


def cut(spec: str, files: list[tuple[str, int]], size: int) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Stretches of at most `size` rows, none of them over two files; reads the files' footers alone."""
    for file, length in files:
        with opened(spec, file) as table:
            rows = table.metadata.num_rows
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            yield {"file": file, "start": start, "stop": stop, "bytes": length * (stop - start) // rows}, stop - start


def read(spec: str, part: dict[str, Any], mode: str) -> Iterator[tuple[str, np.ndarray]]:
    """Ids (column `id`, else file and row) and raw samples."""
    file, start, stop = part["file"], part["start"], part["stop"]
    with opened(spec, file) as table:
        names = table.schema_arrow.names
        column = next((key for key in INPUT_KEYS if key in names), None)
        if column is None:
            raise CovaryError(f"{file} has the columns {', '.join(names)}", f"one of: {', '.join(INPUT_KEYS)}")
        columns = [column, *(["id"] if "id" in names else [])]
        groups, before, row = [], 0, 0
        for i in range(table.num_row_groups):
            length = table.metadata.row_group(i).num_rows
            if before < stop and before + length > start:
                row = before if not groups else row
                groups.append(i)
            before += length
        for batch in table.iter_batches(AT_ONCE, row_groups=groups, columns=columns):
            keep = range(max(start - row, 0), min(stop - row, len(batch)))
            for i in keep:
                name = str(batch["id"][i].as_py()) if "id" in columns else f"{file.rsplit('/', 1)[-1]}:{row + i}"
                checked_id(name, file)
                yield name, sample(batch[column][i], f"input {name!r} of {file}", mode)
            row += len(batch)
            if row >= stop:
                return


def sample(value: pa.Scalar, where: str, mode: str) -> Shaped[np.ndarray, "..."]:
    """A cell as a raw sample: an encoded image (bytes, or a struct with `bytes`), or lists of numbers within lists."""
    import pyarrow as pa

    if isinstance(value, pa.StructScalar) and "bytes" in value:
        value = value["bytes"]
    if not value.is_valid:
        raise CovaryError(f"{where} is null", "an input in every row")
    if pa.types.is_binary(value.type) or pa.types.is_large_binary(value.type):
        return decoded(value.as_py(), where, mode)
    if isinstance(value, pa.ExtensionScalar) and isinstance(value, pa.FixedShapeTensorScalar):
        return raw_sample(value.to_numpy(), where)
    if not isinstance(value, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        raise CovaryError(f"{where} is of type {value.type}", "encoded images, or lists of numbers")
    values, shape = value.values, [len(value.values)]
    while (
        pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type)
    ):
        lengths = {len(inner) if inner.is_valid else -1 for inner in values}
        if len(lengths) != 1:
            raise CovaryError(f"{where} holds lists of {sorted(lengths)} numbers", "lists of one length")
        shape.append(lengths.pop())
        values = values.flatten()
    if values.null_count:
        raise CovaryError(f"{where} holds nulls", "numbers")
    return raw_sample(values.to_numpy(zero_copy_only=False).reshape(shape), where)
