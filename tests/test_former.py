"""What covary wrote before its modules moved (folder `former`) loads, scores and replays as it did then."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from covary.detector import Detector
from covary.objects import FORMER, load_object
from covary.runs.scan import replay

FOLDER = Path(__file__).parent / "former"


@pytest.fixture
def former(tmp_path, monkeypatch) -> Path:
    """A copy, as the working directory."""
    monkeypatch.chdir(shutil.copytree(FOLDER, tmp_path / "former"))
    return Path.cwd()


def column(run: Path, name: str) -> np.ndarray:
    with (run / "results.csv").open(newline="") as file:
        return np.array([float(row[name]) for row in csv.DictReader(file)])


def test_a_saved_detector_gives_the_scores_of_then(former):
    verdicts = Detector.load("detector", trust_code=True).score("inputs.npz")
    # results.csv keeps eight digits; another processor rounds sums otherwise.
    np.testing.assert_allclose(verdicts.score, column(former / "run", "score"), rtol=1e-4)
    np.testing.assert_allclose(verdicts.p_value, column(former / "run", "p_value"), rtol=1e-4)


def test_a_run_replays(former):
    summary, _ = replay(former / "run", former / "again", trust_code=True)
    assert summary["n"] == 24
    np.testing.assert_allclose(column(former / "again", "score"), column(former / "run", "score"), rtol=1e-4)


@pytest.mark.parametrize("name", FORMER)
def test_factories_and_functions_are_found_by_their_former_names(name):
    assert load_object(name, "model") is load_object(FORMER[name], "model")
