"""One partition of a pile as a parquet file that proves itself: every byte of it is under a SHA-256 in its footer."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covary.errors import CovaryError, missing_extra

if TYPE_CHECKING:
    import pyarrow as pa

# Columns that every partition has; the others are those of the detector's own parts.
FIRST = ("id", "score", "p_value", "flagged", "predicted")
KEY = b"covary"
# Second moments of a pile that is judged together.
MOMENTS = "moments.safetensors"
# What stands in the record while the file is hashed; the hash, of the same length, takes its place.
BLANK = "0" * 64
SEAL = re.compile(rb'"sha256": "([0-9a-f]{64})"')
REMEDY = "remove that file and run the same command again"


def arrow() -> Any:
    """pyarrow, which the extra `ray` brings."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "ray") from None
    return pyarrow


def part_name(number: int) -> str:
    """The file of a partition."""
    return f"part-{number:06d}.parquet"


def is_part(name: str) -> bool:
    """Whether a file is that of a partition."""
    return re.fullmatch(r"part-\d{6,}\.parquet", name) is not None


def moments_name(number: int) -> str:
    """The file of a partition's second moments, which is there as long as the partition waits for the pile."""
    return f"moments-{number:06d}.safetensors"


def is_moments(name: str) -> bool:
    """Whether a file holds second moments, of a partition or of the whole pile."""
    return name == MOMENTS or re.fullmatch(r"moments-\d{6,}\.safetensors", name) is not None


def digest_of(table: pa.Table) -> str:
    """sha256 over every column, in order, to the bit; lengths and nulls are part of it."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table[name].combine_chunks()
        digest.update(json.dumps([name, str(column.type), len(column), column.null_count]).encode())
        if str(column.type) in ("double", "int64") and not column.null_count:
            values = column.to_numpy(zero_copy_only=False)
            digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
        elif str(column.type).startswith("fixed_size_list<") and not column.null_count:
            digest.update(column.flatten().to_numpy(zero_copy_only=False).astype("<f8", copy=False).tobytes())
        else:
            digest.update(json.dumps(column.to_pylist()).encode())
    return digest.hexdigest()


def pack(table: pa.Table, record: dict[str, Any]) -> bytes:
    """A partition as the bytes of a parquet file, with `record` and the digests of table and file in its footer."""
    pa, sink = arrow(), io.BytesIO()
    record = {**record, "n": len(table), "digest": digest_of(table), "sha256": BLANK}
    with pa.parquet.ParquetWriter(sink, table.schema.remove_metadata(), compression="zstd") as writer:
        writer.write_table(table.replace_schema_metadata(None))
        writer.add_key_value_metadata({KEY: json.dumps(record, sort_keys=True, allow_nan=False).encode()})
    blank = sink.getvalue()
    start, stop = _seal(blank)
    return blank[:start] + hashlib.sha256(blank).hexdigest().encode() + blank[stop:]


def _seal(content: bytes) -> tuple[int, int]:
    """Where the digest of a file stands in it: the record is in the footer, behind all that data could imitate."""
    found = list(SEAL.finditer(content))
    if not found:
        raise ValueError("no SHA-256 in its footer")
    return found[-1].span(1)


def unpack(
    content: bytes, name: str, where: str, columns: Sequence[str] | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """Columns of a partition and the record in its footer, once every byte is known to be as it was written.

    Args:
        content: of the file.
        name, where: of the file and of its folder, for errors.
        columns: those wanted; None = all.

    Raises:
        CovaryError: a byte of it was changed, or the file is not covary's.
    """
    pa = arrow()
    try:
        start, stop = _seal(content)
        claimed, blank = content[start:stop].decode(), content[:start] + BLANK.encode() + content[stop:]
        if hashlib.sha256(blank).hexdigest() != claimed:
            raise ValueError("its bytes are not those that were written")
        with pa.parquet.ParquetFile(io.BytesIO(content)) as file:
            record = json.loads(file.metadata.metadata[KEY])
            table = file.read()
        _check(table, record, claimed)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, MemoryError, pa.lib.ArrowException) as problem:
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise CovaryError(f"{name} of {where} is damaged ({reason})", "an intact partition", REMEDY) from problem
    return table if columns is None else table.select(list(columns)), record


def read_all(folder: Path) -> pa.Table:
    """All partitions of a finished pile on this machine, in order, as one table in memory.

    Raises:
        CovaryError: a partition is missing, damaged, or another's.
    """
    found = sorted(path.name for path in folder.iterdir() if is_part(path.name))
    tables = []
    for number, name in enumerate(found):
        if name != part_name(number):
            raise CovaryError(f"{folder} lacks {part_name(number)}", "every partition", "run `covary score` again")
        table, record = unpack((folder / name).read_bytes(), name, str(folder))
        if record["number"] != number:
            raise CovaryError(f"{name} of {folder} is a copy of {part_name(record['number'])}", "its own", REMEDY)
        tables.append(table)
    if not tables:
        raise CovaryError(f"{folder} holds no partition", "a finished pile", "run `covary score` again")
    return arrow().concat_tables(tables)


# What a record must hold, and how to tell.
RECORD: dict[str, Callable[[Any], bool]] = {
    "plan": lambda v: isinstance(v, str),
    "number": lambda v: type(v) is int and v >= 0,
    "n": lambda v: type(v) is int and v >= 0,
    "rule": lambda v: isinstance(v, str),
    "digest": lambda v: isinstance(v, str),
    "seconds": lambda v: type(v) in (int, float) and v >= 0,
    "processor_seconds": lambda v: type(v) in (int, float) and v >= 0,
}


def _check(table: pa.Table, record: Any, claimed: str) -> None:
    if not isinstance(record, dict) or record.get("sha256") != claimed:
        raise ValueError("its footer holds no record of covary's")
    for name, fits in RECORD.items():
        if not fits(record.get(name)):
            raise ValueError(f"its record says {name} = {record.get(name)!r:.80}")
    intact = record["n"] == len(table) and record["digest"] == digest_of(table)
    if tuple(table.column_names[: len(FIRST)]) != FIRST or not intact:
        raise ValueError("its verdicts are not those that its record is about")
