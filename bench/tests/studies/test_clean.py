"""The study of cleaned training sets: shares, thresholds set by the truth, the set itself, and its tables."""

from __future__ import annotations

import numpy as np
import pytest

from covary_bench.docs import cleaning, newcomer
from covary_bench.images import attacks
from covary_bench.images.base import Images
from covary_bench.studies import clean as study


def test_a_threshold_by_the_truth_takes_no_more_clean_ones_than_asked_for():
    rng = np.random.default_rng(0)
    score, clean = rng.normal(size=1000), rng.random(1000) < 0.9
    gone = study.removed_at(score, clean, 0.01)
    assert gone[clean].sum() == int(0.01 * clean.sum())
    assert score[gone].min() > score[~gone].max()


def test_shares_count_one_sample_at_a_time():
    rng = np.random.default_rng(1)
    remove, done, judged = rng.random(200) < 0.3, rng.integers(0, 3, 200), rng.random(200) < 0.8
    slow = {"poison": [0, 0], "clean": [0, 0]}
    for gone, what, looked in zip(remove, done, judged, strict=True):
        kind = "poison" if what == 1 else "clean" if what == 0 and looked else None
        if kind:
            slow[kind][0] += int(gone)
            slow[kind][1] += 1
    found = study.shares(remove, done, judged)
    assert found["recall"] == slow["poison"][0] / slow["poison"][1]
    assert found["clean"] == slow["clean"][0] / slow["clean"][1]
    assert found["precision"] == slow["poison"][0] / remove.sum()


def test_the_set_is_the_one_that_the_benchmark_poisons(monkeypatch, tmp_path):
    rng = np.random.default_rng(2)
    x = rng.integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    images = Images(x, rng.integers(0, 10, 300), list(map(str, range(300))))
    monkeypatch.setattr(study.datasets, "load", lambda name: images)
    monkeypatch.setattr(study, "TRUSTED", 20)
    cell = study.Cell("badnets", 0.1, 0, tmp_path)
    found, done = cell.training
    assert (done == 1).sum() == 30
    assert (found.y[done == 1] == study.TARGET).all()
    where = [int(name) for name in found.id]
    assert np.array_equal(found.x[done == 0], images.x[where][done == 0])
    trigger = attacks.attack("badnets").trigger((32, 32, 3), 0)
    assert np.array_equal(found.x[done == 1], trigger(images.x[where][done == 1]))
    assert (done[cell.trusted] == 0).all()


@pytest.fixture
def record() -> dict:
    gone = {"recall": 0.969, "clean": 0.011, "precision": 0.9}
    ways = ("covary", "each alone", "with labels", "cards", *cleaning.RIVALS)
    figures = {"success": 0.9, "accuracy": 0.7}
    cell = {"judged": 30000, "learned": 1.0, "victim": figures, "removed": dict.fromkeys(ways, gone)}
    where = {"clean": 0.01, "clean at 5 %": 0.05, "recall": 1.0, "right": 0.8}
    return {
        "cells": {
            "badnets 10 % s0": {**cell, "retrained": {"covary": figures}},
            "sig 1 % s0": {**cell, "retrained": {}},
        },
        "trusted elsewhere": {"by heart": {"training": where, "test": where}},
    }


def test_tables(record):
    gone, after = cleaning.removed(record).split("\n"), cleaning.retrained(record).split("\n")
    assert gone[2].startswith("| BadNets, 10\u00a0% | 30,000 | 100.0\u00a0% | 96.9\u00a0% / 1.1\u00a0% |")
    assert len({line.count("|") for line in [*gone[:4]]}) == len({line.count("|") for line in after[:4]}) == 1
    assert after[2].count("not measured") == 2
    assert after[3].count("not measured") == 4
    assert cleaning.trusted(record).count("\n") == 4
    assert cleaning.trusted({"trusted elsewhere": {}}) == ""


def test_the_newcomers_clock():
    steps = [["`a`", "vision", 59.6, 1.0], ["`b`", "tutorial", 61.0, 2.4]]
    lines = newcomer.steps({"cores": 2, "verdict": "`b`", "steps": steps}).split("\n")
    assert lines[2] == "| `a` | [Vision](vision.md) | 60 | 0 min 59 s | 1 |"
    assert lines[3] == "| **`b`** | [Tutorial](tutorial.md) | 61 | 2 min 00 s | 2 |"
