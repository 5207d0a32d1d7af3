"""Plans, and the order of work: everything that can be refused is refused before anything long begins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tiny
from covary.cli.console import Terminal
from covary.errors import CovaryError
from covary.runs import scan as scanning

X, Y, TRUTH = tiny.inputs()


def plan(files, **changes):
    names = {
        "model": "tiny:network", "weights": str(files / "weights.safetensors"), "trusted": str(files / "trusted.npz"),
        "inputs": str(files / "inputs.npz"), "settings": {},
    }  # fmt: skip
    return scanning.ScanPlan.checked(**{**names, **changes})


def test_a_plan_survives_json(tiny_files):
    made = plan(tiny_files, mean=[0.1], std=[0.5], fdr=0.1, target="all-to-all", settings={"output": "0", "seed": 3})
    assert scanning.ScanPlan(**scanning.ScanPlan.model_validate_json(made.model_dump_json()).model_dump()) == made
    assert plan(tiny_files, target=3).target == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fdr": 0.0}, "fdr is 0.0; expected a number greater than 0"),
        ({"settings": {"fpr": 1.0}}, "fpr is 1.0; expected a number less than 1"),
        ({"settings": {"score": "none"}}, "unknown score 'none'"),
        ({"settings": {"seed": -1}}, "seed is -1"),
    ],
)
def test_a_plan_is_checked_when_it_is_made(tiny_files, changes, words):
    with pytest.raises(CovaryError, match=words):
        plan(tiny_files, **changes)


class Begun(Exception):
    """The long work was begun."""


@pytest.fixture
def no_long_work(monkeypatch):
    def begin(*_, **__):
        raise Begun

    monkeypatch.setattr(scanning.Detector, "fit", begin)


def test_what_can_be_refused_is_refused_before_the_long_work(tiny_files, tmp_path, no_long_work):
    x, y = tiny.trusted()
    np.savez(tmp_path / "no-threes.npz", x=x[y != 3], y=y[y != 3])
    (tmp_path / "taken").write_text("")
    for changes, out, words in (
        ({}, "taken", "is a file"),
        ({"inputs": None}, "run", "nothing to judge"),
        ({"inputs": "nothing.npz"}, "run", "nothing at nothing.npz"),
        ({"target": 10}, "run", "target= is 10"),
        (
            {"trusted": str(tmp_path / "no-threes.npz"), "settings": {"allow_missing_classes": False}},
            "run",
            "answered with class 3",
        ),
        ({"truth": "nothing"}, "run", "nothing"),
    ):
        with pytest.raises(CovaryError, match=words):
            scanning.scan(plan(tiny_files, **changes), tmp_path / out)
    with pytest.raises(Begun):
        scanning.scan(plan(tiny_files), tmp_path / "run")
    allowed = plan(tiny_files, trusted=str(tmp_path / "no-threes.npz"))
    with pytest.raises(Begun):
        scanning.scan(allowed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_check_warns_of_is_in_the_summary(tiny_files, tmp_path):
    both = plan(tiny_files, inputs=str(tiny_files / "trusted.npz"))
    summary = scanning.scan(both, tmp_path / "run")
    assert any(warning.startswith("Duplicates: ") for warning in summary["warnings"])


def test_warnings_are_told_on_stderr(tiny_files, tmp_path, no_long_work, capsys):
    with pytest.raises(Begun):
        scanning.scan(plan(tiny_files, inputs=str(tiny_files / "trusted.npz")), tmp_path / "run", display=Terminal())
    out, err = capsys.readouterr()
    assert out == ""
    assert "warning Duplicates" in err


def test_a_user_s_observable_needs_no_logits(tiny_files, tmp_path, monkeypatch):
    monkeypatch.setattr("covary.runs.check.network.answer", None)
    own = plan(tiny_files, settings={"observable": "test_detector:largest_logit", "batch_size": 128})
    summary = scanning.scan(own, tmp_path / "run")
    assert summary["auroc"] > 0.9
    assert summary["auroc_masked"] is None


def test_a_replay_does_not_replace_what_it_replays(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"plan": {}}')
    with pytest.raises(CovaryError, match="the RUN to be replayed"):
        scanning.replay(run, Path(run))
    made = {"config": {"detector": "d", "inputs": "i.npz"}, "folder": ".", "fingerprints": {"inputs": ""}}
    (run / "run.json").write_text(json.dumps({**made, "plan": None}))
    with pytest.raises(CovaryError, match="was made from a saved detector"):
        scanning.replay(run)


@pytest.mark.parametrize(
    ("settings", "passes", "memory"),
    [
        ({}, 3.5, "for the gradients of "),
        ({"estimator": "gaussian", "draws": 20, "chains": 2}, 41, "for 40 draws of the weights"),
        ({"estimator": "gaussian", "draws": 20, "layerwise": True}, 81, "for 20 draws of the weights"),
        ({"estimator": "paper"}, 176, "for 175 draws of the weights"),
    ],
)
def test_what_a_scan_costs_is_told_by_its_estimator(settings, passes, memory, tiny_files):
    report = scanning.check_plan(plan(tiny_files, settings=settings))
    (cost,) = [finding.text for finding in report.findings if finding.title == "Time and memory"]
    assert f"{passes} of them an input" in cost
    assert memory in cost
