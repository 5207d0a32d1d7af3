"""The demo: real digits, a backdoor, and what the detector makes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from covary.runs import demo
from covary.scoring.calibration.conformal import false_alarm_interval


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo.run_demo(folder / "run")


def test_it_finds_the_backdoor(demo_run):
    _, summary = demo_run
    assert summary["auroc"] == summary["auroc_masked"]
    assert summary["auroc"] >= 0.99
    assert summary["tpr"] > 0.9
    assert summary["attack_success"] > 0.95
    assert summary["accuracy"] > 0.95
    low, high = false_alarm_interval(0.01, summary["n_calibration"], summary["n_clean"])
    assert low <= summary["fpr"] <= high
    assert {"auroc", "fpr", "tpr", "der", "seconds"} <= set(summary)


def test_it_leaves_a_run_and_the_material_beside_it(demo_run):
    folder, summary = demo_run
    assert sorted(entry.name for entry in folder.iterdir()) == ["run", "run-material"]
    assert (folder / "run" / "report.html").is_file()
    written = json.loads((folder / "run" / "summary.json").read_text())
    assert written["auroc_masked"] == summary["auroc"]
    with np.load(folder / "run-material" / "inputs.npz") as inputs, np.load(
        folder / "run-material" / "trusted.npz"
    ) as trusted:
        digit = {name.split("-")[1] for name in inputs["id"]}
        assert not digit & {name.split("-")[1] for name in trusted["id"]}
        assert (inputs["y"][inputs["truth"] == 1] != demo.TARGET).all()


def test_the_digits_are_those_of_the_package_s_own_reader():
    x, y = demo.digits()
    assert x.shape == (5000, 28, 28)
    assert np.bincount(y).tolist() == [500] * 10
    assert 25 < x.mean() < 45


def test_the_trigger_marks_and_copies():
    images = np.zeros((2, 28, 28), np.uint8)
    marked = demo.trigger(images)
    assert marked.sum() == 2 * 9 * 255
    assert images.sum() == 0


def test_training_is_repeatable():
    x, y = demo.digits()
    a, b = (demo.train_network(x[:64], y[:64], seed=1) for _ in range(2))
    assert all((a[name] == b[name]).all() for name in a)
