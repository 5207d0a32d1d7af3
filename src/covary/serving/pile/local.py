"""Partitions one after another in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from covary.serving.pile.passes import Record


def run(make: Callable[..., Any], arguments: dict[str, Any], parts: list[tuple[int, str]]) -> Iterator[Record]:
    """What `make(**arguments)` says of every (number, partition), in order."""
    worker = make(**arguments)
    for number, part in parts:
        yield worker(number, part)
