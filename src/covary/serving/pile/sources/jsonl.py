"""JSON Lines: one object an input, with `x` (nested numbers), `input_ids` or a base64 `image`, and where known `id`."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from covary.data.readers.base import checked_id
from covary.data.readers.python import INPUT_KEYS
from covary.errors import CovaryError
from covary.serving.pile.output_store import filesystem
from covary.serving.pile.sources.values import decoded, numbers

SUFFIXES = (".jsonl", ".ndjson")


def cut(spec: str, files: list[tuple[str, int]], size: int) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Stretches of at most `size` lines, none of them over two files; reads through the files for the line ends."""
    fs = filesystem(spec)[0]
    for file, length in files:
        start = offset = count = number = line = 0
        with fs.open(file, "rb") as lines:
            for text in lines:
                if count == size:
                    yield (
                        {"file": file, "offset": start, "line": line, "lines": number - line, "bytes": offset - start},
                        count,
                    )
                    start, count, line = offset, 0, number
                offset, number, count = offset + len(text), number + 1, count + bool(text.strip())
        if count:
            yield {"file": file, "offset": start, "line": line, "lines": number - line, "bytes": length - start}, count


def read(spec: str, part: dict[str, Any], mode: str) -> Iterator[tuple[str, np.ndarray]]:
    """Ids (`id`, else file and line, counted from 1) and raw samples."""
    file = part["file"]
    with filesystem(spec)[0].open(file, "rb") as lines:
        lines.seek(part["offset"])
        for number in range(part["line"] + 1, part["line"] + part["lines"] + 1):
            text: Any = lines.readline()
            if text.strip():
                yield parsed(text, f"{file.rsplit('/', 1)[-1]}:{number}", mode)


def parsed(text: bytes, place: str, mode: str) -> tuple[str, np.ndarray]:
    """Id and raw sample of a line."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CovaryError(f"line {place} is no JSON ({error})", "one JSON object a line") from error
    key = next((key for key in INPUT_KEYS if key in value), None) if isinstance(value, dict) else None
    if key is None:
        found = ", ".join(value) if isinstance(value, dict) else type(value).__name__
        raise CovaryError(f"line {place} holds {found}", f"an object with one of: {', '.join(INPUT_KEYS)}")
    name = checked_id(str(value.get("id", place)), f"line {place}")
    if not isinstance(value[key], str):
        return name, numbers(value[key], f"line {place}", value.get("dtype"))
    try:
        data = base64.b64decode(value[key], validate=True)
    except (binascii.Error, ValueError) as error:
        raise CovaryError(f"{key!r} of line {place} is text", "numbers, or an image in base64") from error
    return name, decoded(data, f"line {place}", mode)
