"""The core table scans as its page says: each input alone, by fast evidence."""

from __future__ import annotations

from pathlib import Path

from covary_bench.studies import core

CASE = {"model": "m:f", "weights": "w", "trusted": "t.npz", "inputs": "i.npz", "mean": (0.1, 0.2), "target": 5}


def test_each_input_is_scanned_alone_by_fast_evidence(run_cli):
    arguments = core.scan_arguments(CASE, Path("out"))
    assert "--alone" in arguments
    assert arguments[arguments.index("--evidence") + 1] == "fast"
    assert arguments[arguments.index("--mean") + 1] == "0.1,0.2"
    told = run_cli("scan", "--help", covary=True)[1]
    assert all(name in told for name in arguments if name.startswith("--"))
    page = (Path(__file__).parents[3] / "docs" / "results.md").read_text("utf-8")
    assert "--alone --evidence fast" in page
