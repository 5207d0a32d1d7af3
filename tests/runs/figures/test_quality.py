"""Metrics by hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covary.runs.figures.quality import auroc, der, evaluate, masked, target_of, thinned_roc, tpr_at
from covary.scoring.calibration.conformal import false_alarm_interval


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    scores = np.array([0.1, 0.4, 0.4, 0.8, 0.3])
    truth = np.array([0, 0, 1, 1, 1])
    # Pairs (anomalous, clean): .4>.1, .4=.4, .8>.1, .8>.4, .3>.1, .3<.4 = 4.5 of 6.
    assert auroc(scores, truth) == pytest.approx(4.5 / 6)
    assert auroc(scores, np.zeros(5, int)) is None
    assert auroc(scores, np.ones(5, int)) is None


def test_tpr_at_a_false_positive_rate_by_hand():
    clean = np.arange(100.0)
    scores = np.concatenate([clean, [98.0, 98.5, 99.0, 99.5]])
    truth = np.repeat([0, 1], [100, 4])
    # One false alarm allowed: any threshold in [98, 99) flags 99 alone of the clean; 98.5, 99, 99.5 exceed 98.
    assert tpr_at(scores, truth, 0.01) == 0.75
    # None allowed: only what exceeds 99.
    assert tpr_at(scores, truth, 0.001) == 0.25
    assert tpr_at(scores, truth, 1.0) == 1.0
    assert tpr_at(scores, np.zeros(104, int), 0.01) is None


def test_tied_clean_scores_do_not_sneak_past_the_rate():
    scores = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 2.0])
    truth = np.array([0, 0, 0, 0, 1, 1])
    assert tpr_at(scores, truth, 0.25) == 0.5, "flagging 1.0 would raise three alarms of four"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=30), st.floats(0, 1))
def test_tpr_at_is_the_best_of_all_thresholds(pairs, fpr):
    scores, truth = np.array([float(s) for s, _ in pairs]), np.array([int(t) for _, t in pairs])
    if not 0 < truth.sum() < len(truth):
        return
    best = 0.0
    for threshold in [*scores, np.inf]:
        flagged = scores >= threshold
        if flagged[truth == 0].mean() <= fpr + 1e-9:
            best = max(best, float(flagged[truth == 1].mean()))
    assert tpr_at(scores, truth, fpr) == pytest.approx(best)


def test_defense_effectiveness_by_hand():
    # (ASR TPR - ACC FPR + 1) / 2 = (0.9 * 0.8 - 0.95 * 0.1 + 1) / 2 = 1.625 / 2.
    assert der(tpr=0.8, fpr=0.1, accuracy=0.95, attack_success=0.9) == pytest.approx(0.8125)
    assert der(tpr=1.0, fpr=0.0, accuracy=0.95, attack_success=0.9) == pytest.approx(0.95), "the ceiling, (ASR + 1) / 2"
    assert der(tpr=0.0, fpr=0.0, accuracy=0.5, attack_success=0.9) == 0.5, "a detector that does nothing"
    assert der(tpr=1.0, fpr=1.0, accuracy=1.0, attack_success=1.0) == 0.5, "one that flags everything"


def test_targets():
    y = np.array([0, 4, 9])
    assert target_of(y, 3, 10).tolist() == [3, 3, 3]
    assert target_of(y, "all-to-all", 10).tolist() == [1, 5, 0]


def test_masking_keeps_right_clean_and_successful_triggered_inputs():
    truth = np.array([0, 0, 1, 1, 1])
    predicted = np.array([1, 2, 0, 1, 0])
    y = np.array([1, 1, 1, 1, 0])
    # Last: the target's own images reach it without any trigger.
    assert masked(truth, predicted, y, 0, 3).tolist() == [True, False, True, False, False]
    assert masked(truth, predicted, y, "all-to-all", 3).tolist() == [True, False, False, False, False]


def evaluated(**changes):
    truth = np.array([0] * 5 + [1] * 5)
    case = {
        "scores": np.array([0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.7, 0.05, 0.95, 0.6]),
        "flagged": np.array([0, 0, 0, 1, 1, 1, 1, 0, 1, 0], bool),
        "truth": truth,
        "predicted": np.array([0, 1, 2, 1, 0, 0, 0, 1, 0, 0]),
        "y": np.array([0, 1, 2, 1, 1, 1, 2, 1, 0, 2]),
        "target": 0,
        "classes": 3,
        "calibration": 99,
        "fpr_in_force": 0.1,
    }
    return evaluate(**{**case, **changes})


def test_summary_by_hand():
    found = evaluated()
    assert found["fpr"] == 0.4
    assert found["tpr"] == 0.6
    assert found["balanced_accuracy"] == pytest.approx(0.6)
    # Clean 4 right of 5; of 5 triggered one shows the target already, 3 of the other 4 reach it.
    assert found["accuracy"] == 0.8
    assert found["attack_success"] == 0.75
    # Right clean: scores .1 .2 .3 .4, one flagged. Reached: .8 .7 .6, two flagged.
    assert found["auroc_masked"] == 1.0
    assert found["fpr_masked"] == 0.25
    assert (found["fpr_right"], found["n_clean_right"]) == (0.25, 4)
    assert found["tpr_masked"] == pytest.approx(2 / 3)
    assert found["der"] == pytest.approx((0.75 * 2 / 3 - 0.8 * 0.25 + 1) / 2)
    assert found["der_masked"] == pytest.approx((2 / 3 - 0.25 + 1) / 2)
    assert found["der_ceiling"] == pytest.approx(1.75 / 2)
    assert found["tpr_at_1"] == 1.0, "over masked inputs"
    # Pairs of all: each triggered score against .1 .2 .3 .4 .9.
    assert found["auroc"] == pytest.approx((4 + 4 + 0 + 5 + 4) / 25)
    assert found["fpr_interval"] == list(false_alarm_interval(0.1, 99, 5))


def test_what_cannot_be_told_is_none():
    without_y = evaluated(y=None)
    for name in ("auroc_masked", "accuracy", "attack_success", "der", "der_masked", "der_ceiling"):
        assert without_y[name] is None
    assert without_y["auroc"] is not None
    assert without_y["fpr_right"] is None
    without_target = evaluated(target=None)
    assert without_target["accuracy"] == 0.8
    assert without_target["fpr_right"] == 0.25, "rates need no attacker's label"
    for name in ("auroc_masked", "attack_success", "der", "der_masked", "der_ceiling"):
        assert without_target[name] is None
    clean = evaluated(truth=np.zeros(10, int))
    assert clean["tpr"] is None
    assert clean["auroc"] is None
    assert clean["der"] is None
    odd = evaluated(truth=np.ones(10, int))
    assert odd["fpr"] is None
    assert odd["accuracy"] is None


def test_thinned_roc_keeps_its_ends():
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=3000), rng.integers(0, 2, 3000)
    points = thinned_roc(scores, truth, 50)
    assert points is not None
    assert len(points) <= 50
    assert points[0] == [0, 0]
    assert points[-1] == [1, 1]
    assert (np.diff(np.array(points), axis=0) >= 0).all()
    assert thinned_roc(scores, np.zeros(3000, int)) is None
