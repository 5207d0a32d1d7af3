"""The study of what a scan takes: a command is watched line by line, and its figures become a table."""

from __future__ import annotations

import sys

import pytest

from covary_bench.docs.texts import scan as told
from covary_bench.studies.language.scan import watched


def test_a_command_is_watched(capfd):
    made = "import time; print('a', flush=True); time.sleep(0.6); print('b', flush=True)"
    found = watched([sys.executable, "-c", made])
    assert found["lines"] == 2
    assert found["silence"] >= 0.5
    assert found["wall"] >= 0.6 > 0
    assert found["peak_gib"] >= 0
    assert [line.split()[-1] for line in capfd.readouterr().out.splitlines()] == ["a", "b"]
    table = told({**found, "texts": 8, "trusted": 5, "answer": 24, "processor_a_text": 1.25})
    assert "| texts, of which trusted | 8, 5 |" in table
    with pytest.raises(SystemExit, match="3"):
        watched([sys.executable, "-c", "raise SystemExit(3)"])
