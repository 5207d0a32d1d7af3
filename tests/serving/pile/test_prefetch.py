"""Reading ahead changes neither order nor errors, and leaves no thread behind."""

from __future__ import annotations

import threading

import pytest

from covary.serving.pile.prefetch import batched, prefetch


def running() -> int:
    return sum(thread.name == "covary-prefetch" for thread in threading.enumerate())


def test_order_and_end():
    assert list(prefetch(range(100))) == list(range(100))
    assert list(prefetch([])) == []
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []
    assert running() == 0


def test_errors_come_after_what_came_before():
    def broken():
        yield 1
        yield 2
        raise ValueError("no more")

    items = prefetch(broken())
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(items)
    assert running() == 0


def test_whoever_stops_early_stops_the_reading():
    made = []

    def endless():
        while True:
            made.append(len(made))
            yield made[-1]

    items = prefetch(endless(), most=2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    items.close()
    assert running() == 0
    assert len(made) <= 3 + 2 + 2
