"""Progress where nobody watches a terminal: a line says how far the work is, never that it is over."""

from __future__ import annotations

import pytest

from covary.cli import console


@pytest.mark.parametrize(
    ("done", "said"),
    [(0, "inputs: 0 of 200 (0 %), 0/s"), (50, "inputs: 50 of 200 (25 %), "), (200, "inputs: all 200 read, working")],
)
def test_a_line_tells_how_far_the_work_is(done, said, capsys):
    lines = console._Lines("inputs")
    lines.started -= 60
    lines(done, 200)
    lines.say()
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.startswith(said)
    assert ("left" in printed) == (0 < done < 200)
