"""Records in columns: names that every row repeats stand once. What is read back is what was written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from covary.storage import folders

KEY = "in columns"  # of a table that stands for rows or for a mapping
LEAST = 3  # rows for a table to be shorter than they are


def packed(found: Any) -> Any:
    """The same with mappings alike as tables: those of a list run by run, those of a mapping if all are alike."""
    if isinstance(found, Mapping):
        paths = [list(_leaves(value)) for value in found.values()] if all(map(_inner, found.values())) else []
        if len(found) >= LEAST and paths and all(own == paths[0] for own in paths):
            return {KEY: paths[0], "by": {name: [_at(value, path) for path in paths[0]]
                                          for name, value in found.items()}}  # fmt: skip
        return {name: packed(value) for name, value in found.items()}
    if isinstance(found, list):
        if len(found) >= LEAST and all(isinstance(value, Mapping) for value in found):
            runs = [list(own) for _, own in groupby(found, key=list)]
            return {KEY: [[list(own[0]), *([packed(v) for v in row.values()] for row in own)] for own in runs]}
        return [packed(value) for value in found]
    return found


def unpacked(found: Any) -> Any:
    """What was packed."""
    if isinstance(found, Mapping):
        if KEY in found and "by" in found:
            return {name: _nested(found[KEY], values) for name, values in found["by"].items()}
        if KEY in found:
            return [dict(zip(names, map(unpacked, row), strict=True)) for names, *rows in found[KEY] for row in rows]
        return {name: unpacked(value) for name, value in found.items()}
    if isinstance(found, list):
        return [unpacked(value) for value in found]
    return found


def write_packed(path: Path, found: Mapping[str, Any]) -> None:
    """Writes a record in columns as JSON, whole or not at all, one line a run of rows."""
    part = path.with_suffix(".json.part")
    text = json.dumps(packed(found), ensure_ascii=False, separators=(",", ":")).replace(f'{{"{KEY}"', f'\n{{"{KEY}"')
    part.write_text(text + "\n", encoding="utf-8", newline="\n")
    part.rename(path)


def read_packed(path: Path) -> Any:
    """A record, in columns or not.

    Raises:
        CovaryError: no such file, or no JSON.
    """
    return unpacked(folders.read_json(path, "a record of the benchmark"))


def _inner(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    if not _inner(value):
        yield list(path)
        return
    for name, inner in value.items():
        yield from _leaves(inner, (*path, name))


def _at(value: Any, path: list[str]) -> Any:
    for name in path:
        value = value[name]
    return value


def _nested(paths: list[list[str]], values: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, value in zip(paths, values, strict=True):
        inner = found
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    return found
