"""The false-stop rate over all looks: by simulation, beside what ranking every look for itself would do."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from core_cases import synthetic
from covary.errors import CovaryError
from covary.scoring.calibration import conformal
from covary.scoring.judge import Judge
from covary.serving.guard import Looks

LOOKS, TRUSTED, FRESH, DEALS, RATE = 4, 99, 300, 8, 0.1


def answers(n, seed, prefix):
    """Rows at every look of answers that end after two or three of them; looks tell different things."""
    reach = np.random.default_rng([seed, 5]).integers(LOOKS - 1, LOOKS + 1, n)
    rows = []
    for look in range(LOOKS):
        own = synthetic(n, 100 * seed + look, mix=(1.0,))[0]
        there = np.flatnonzero(reach > look)
        rows.append(replace(own, ids=[f"{prefix}{i}" for i in range(n)]).take(there))
    return rows


def highest(looks, rows, n):
    """The largest score over all looks, and the smallest p-value of a look ranked for itself."""
    largest, smallest = np.full((looks.folds, n), -np.inf), np.ones(n)
    for look, own in enumerate(rows[: len(looks)]):
        places = [int(name[1:]) for name in own.ids]
        found = looks.scores(own, look)
        largest[:, places] = np.maximum(largest[:, places], found)
        judge = looks.judges[look]
        p = conformal.cross_conformal_p(found, judge.calibration_scores, judge.calibration_folds)
        smallest[places] = np.minimum(smallest[places], p)
    return largest, smallest


def test_the_false_stop_rate_holds_over_all_looks_and_one_look_for_itself_does_not(monkeypatch):
    # It holds whatever the score is, so a quick one does.
    monkeypatch.setattr("covary.serving.guard.looks.Judge", functools.partial(Judge, "class-max"))
    flagged, alone = [], []
    for deal in range(DEALS):
        looks = Looks(answers(TRUSTED, 10 + deal, "t"), seed=deal)
        largest, smallest = highest(looks, answers(FRESH, 50 + deal, "f"), FRESH)
        flagged.append(np.mean(looks.p_value(largest) <= RATE + 1e-9))
        alone.append(np.mean(smallest <= RATE + 1e-9))
    # Calibration and inputs are both finite: the law of the mean over deals.
    error = np.sqrt(RATE * (1 - RATE) * (1 / (TRUSTED + 2) + 1 / FRESH) / DEALS)
    assert abs(np.mean(flagged) - RATE) <= 4 * error
    assert np.mean(alone) > RATE + 4 * error


def test_p_values_are_ranks_among_the_oddest_looks_of_trusted_answers():
    looks = Looks(answers(60, 3, "t"))
    largest, _ = highest(looks, answers(30, 4, "f"), 30)
    for i, p in enumerate(looks.p_value(largest)):
        at_least = sum(m >= largest[fold, i] for m, fold in zip(looks.highest_, looks.folds_, strict=True))
        assert p == pytest.approx((1 + at_least) / 61)


def test_the_same_rows_and_roles_give_the_same_looks():
    rows = answers(60, 3, "t")
    first = Looks(rows, seed=4)
    again = Looks(rows, seed=9, roles=first.roles)
    assert np.array_equal(first.highest_, again.highest_)


def test_a_rate_too_small_for_its_answers_is_told():
    looks = Looks(answers(60, 3, "t"))
    rate, statements = looks.rate(0.001)
    assert rate == pytest.approx(1 / 61)
    assert "cannot resolve" in statements[0]
    assert looks.rate(0.1)[0] == 0.1
    with pytest.raises(CovaryError):
        Looks(answers(12, 3, "t"))


def test_looks_end_where_a_fold_has_too_few_answers():
    rows = answers(60, 3, "t")
    roles = Looks(rows[:1]).roles
    thin = [name for role, ids in roles.items() for name in ids[:5] if role == "fit 0"]
    some = rows[0].take([i for i, name in enumerate(rows[0].ids) if name in thin or name not in roles["fit 0"]])
    assert len(Looks([rows[0], some, rows[0]])) == 1
