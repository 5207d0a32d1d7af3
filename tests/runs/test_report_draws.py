"""The report's section on draws: its words and figures, its curves, and what it makes of strange records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from covary.runs.report import write_report
from covary.runs.report.lines import lines
from fake_run import write_fake_run
from pages import HOSTILE, Page

SUMMARY = {
    "estimator": "paper", "sampler": "rmsprop_sgld", "settings": {"step_size": 1e-6, "weight_decay": 0.0},
    "draws": 350, "chains": 2, "burn_in": 250, "thinning": 10, "batchnorm": "drift", "observable": "nll",
    "bank": {"bytes": 61341696, "full_bytes": 122683392, "precision": "float16", "score_error": 0.0004},
    "verdict": {
        "good": False, "effective": 45.2, "rhat": 1.31, "still": 3, "traces": 200, "error": 0.149, "kept": 0.97,
        "ess": [21.0, 45.2, 90.0], "rhats": [1.0, 1.1, 1.31],
        "sentences": ["45 effective draws of 350: raise thinning and steps.", "A coupling is known to about 0.15."],
    },
    "steps": [1, 500, 2000], "loss": [[0.5, 0.7, None], [0.4, 0.6, 0.65]], "accuracy": [[0.9, 0.8, 0.85]] * 2,
    "trace_draws": [1, 2, 175],
    "sample_traces": [{"id": "trusted/0001", "predicted": 3, "values": [[0.1, 0.3, 0.2], [0.2, 0.1, 0.4]]}],
}  # fmt: skip


def page_of(folder: Path, message: Any) -> Page:
    run = write_fake_run(folder, n=60)
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**report, "sampling": message}))
    return Page(write_report(run))


def test_verdict_figures_and_curves_are_in_the_page(tmp_path):
    page = page_of(tmp_path, SUMMARY)
    for words in (
        "45 effective draws of 350: raise thinning and steps.",
        "A coupling is known to about 0.15.",
        "paper, step size 1e-06",
        "2 / 250 / 10",
        "45 (5 % to 95 % of traces: 21 to 90)",
        "1.31 (5 % to 95 % of traces: 1.00 to 1.31)",
        "3 of 200",
        "0.149",
        "58.5 MB in float16, 117.0 MB in full; scores move by at most 0.0004 for it",
        "trusted/0001 , predicted cat",
        "of its trace is unexplained",
    ):
        assert words in page.text, words
    curves = [a["d"] for a in page.all("path") if a.get("class", "").startswith("along")]
    assert len(curves) == 6
    assert "#draws" in [a.get("href") for a in page.all("a")]


def test_runs_without_draws_have_no_such_section(tmp_path):
    for message in (None, {}, {"verdict": {}}, 3, [1], {"verdict": None, "sample_traces": "x"}):
        page = page_of(tmp_path, message)
        assert "Draws of the weights" not in page.text
    assert "of its gradient is unexplained" in page_of(tmp_path, None).text


@pytest.mark.parametrize("junk", [None, 3, "x", [None, 3, {}], {"a": None}, [[1, "x", None]], [{"id": None}]])
def test_strange_records_are_survived(junk, tmp_path):
    message = {
        **dict.fromkeys(SUMMARY, junk),
        "verdict": {**dict.fromkeys(SUMMARY["verdict"], junk), "sentences": ["Said."]},
    }
    assert "Said." in page_of(tmp_path, message).text


def test_hostile_strings_stay_text(tmp_path):
    evil = HOSTILE[1]
    traces = [{**SUMMARY["sample_traces"][0], "id": evil}]
    message = {**SUMMARY, "estimator": evil, "observable": evil, "sample_traces": traces, "batchnorm": evil}
    page = page_of(tmp_path, {**message, "verdict": {"sentences": [evil]}, "settings": {evil: 1.0}})
    assert len(page.all("script")) == 2
    assert evil in page.text


def test_a_curve_runs_over_its_frame_and_leaves_gaps():
    found = re.findall(r'd="([^"]*)"', str(lines("a", [0.0, 5.0, 10.0], [[0.0, 1.0, 0.0], [1.0, None, 0.5]])))
    points = [tuple(map(float, p.split())) for p in re.split("[ML]", found[0])[1:]]
    assert [x for x, _ in points] == [0, 500, 1000]
    assert points[1][1] < points[0][1] == points[2][1], "larger values lie higher"
    assert found[1].count("M") == 2
    assert "L" not in found[1]
    assert 'class="along c1"' in str(lines("a", [0.0, 1.0], [[0.0, 1.0], [1.0, 0.0]]))
    assert "along" in str(lines("nothing", [], [[]]))
