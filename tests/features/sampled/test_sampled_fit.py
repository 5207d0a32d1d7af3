"""Chains on real roles: who moves the weights, that they meet nobody else, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tiny
from covary.data.source import open_data
from covary.detector import Detector
from covary.errors import CovaryError
from covary.features.sampled.fit import take_draws
from covary.scoring.calibration.splits import not_calibrating, sampling_split, split

X, Y, TRUTH = tiny.inputs()
SHORT = {"draws": 12, "burn_in": 6, "thinning": 1, "batch_size": 256}


def roles_of(detector):
    found: dict[str, set[str]] = {}
    for name, ids in detector.judge.roles.items():
        found.setdefault(name.split()[0], set()).update(ids)
    return found


@pytest.mark.parametrize("estimator", ["paper", "sgld"])
def test_half_of_the_trusted_inputs_move_the_weights_and_do_nothing_else(estimator, tmp_path):
    x, y = tiny.trusted()
    detector = Detector("tiny:trained", estimator=estimator, fpr=0.05, **SHORT).fit(x, y)
    roles = roles_of(detector)
    assert abs(len(roles["sampling"]) - len(x) / 2) <= 5
    for role in ("reference", "fit", "calibration"):
        assert not roles["sampling"] & roles[role], role
    assert not roles["sampling"] & set(detector.trusted_rows.ids)
    message = detector.extractor.summary
    assert (message["estimator"], message["draws"], message["burn_in"]) == (estimator, 12, 6)
    assert len(message["loss"][0]) == len(message["accuracy"][0]) == len(message["steps"]) == 18
    assert bool(detector.extractor.bank.buffers) == (estimator == "paper"), "drifting statistics belong to the draws"
    loaded = Detector.load(detector.save(tmp_path / "detector"), trust_code=True)
    np.testing.assert_array_equal(loaded.score(X).score, detector.score(X).score)
    assert loaded.judge.roles == detector.judge.roles


def test_a_sampling_set_apart_leaves_all_trusted_inputs_to_the_other_roles():
    x, y = tiny.trusted()
    settings = {"estimator": "sgld", "chains": 2, **SHORT}
    detector = Detector("tiny:trained", **settings).fit(x[:350], y[:350], sampling=(x[350:], y[350:]))
    assert len(detector.trusted_rows) == 350
    assert len(detector.judge.roles["sampling"]) == len(x) - 350
    assert detector.judge.mode == "split"
    assert len(detector.extractor.bank) == 24
    assert len(detector.extractor.summary["loss"]) == 2
    again = Detector("tiny:trained", **settings).fit(x[:350], y[:350], sampling=(x[385:], y[385:]))
    assert not np.allclose(again.score(X[:20]).score, detector.score(X[:20]).score), "the set is what chains descend on"


def test_what_cannot_be_sampled_with_is_refused():
    x, y = tiny.trusted()
    paper = Detector("tiny:trained", estimator="paper", **SHORT)
    for arguments, words in (
        ({"trusted": x}, "the trusted inputs have no labels"),
        ({"trusted": (x[:50], y[:50])}, "half of the trusted inputs with known classes are 2"),
        ({"trusted": (x, np.where(np.arange(len(y)) < 40, y, -1))}, "with known classes are 2"),
        ({"trusted": (x[:300], y[:300]), "sampling": (x[290:], y[290:])}, "10 sampling inputs, '0' the first, are"),
        ({"trusted": (x[:300], y[:300]), "calibration": x[300:], "sampling": (x[380:], y[380:])}, "calibration ones"),
        ({"trusted": (x[:300], y[:300]), "sampling": x[300:]}, "the sampling data have no labels"),
        ({"trusted": (x[:300], y[:300]), "sampling": (x[300:, :7], y[300:])}, "shape (1, 7, 8); expected (1, 8, 8)"),
        ({"trusted": (x[:300], y[:300]), "sampling": (x[:8], y[:8])}, "the sampling set has 8 inputs; expected"),
    ):
        with pytest.raises(CovaryError) as refused:
            paper.fit(**arguments)
        assert words in str(refused.value)
    with pytest.raises(CovaryError, match="a sampling set for the estimator gaussian, whose draws need none"):
        Detector("tiny:trained", estimator="gaussian").fit((x[:300], y[:300]), sampling=(x[300:], y[300:]))
    with pytest.raises(CovaryError, match="a sampling set for the estimator first-order, which takes no draws"):
        Detector("tiny:trained").fit((x[:300], y[:300]), sampling=(x[300:], y[300:]))
    with pytest.raises(CovaryError, match=r"diverged at step .* lower step_size"):
        Detector("tiny:trained", estimator="sgld", constants={"step_size": 1.0}, **SHORT).fit(x, y)


def test_sampling_split_is_stratified_and_takes_only_known_classes():
    y = np.repeat(np.arange(4), 50)
    y[::7] = -1
    ids = [f"i{i}" for i in range(len(y))]
    sampling, rest = sampling_split(ids, y, seed=0)
    assert sorted([*sampling, *rest]) == list(range(len(y)))
    assert (y[sampling] >= 0).all()
    assert len(sampling) == math.ceil((y >= 0).sum() / 2)
    other, _ = sampling_split(ids, np.where(y < 0, y, 0), seed=0)
    np.testing.assert_array_equal(sampling, other, err_msg="by lot: classes choose nobody")
    order = np.random.default_rng(0).permutation(len(y))
    again, _ = sampling_split([ids[i] for i in order], y[order], seed=0)
    assert {ids[order[i]] for i in again} == {ids[i] for i in sampling}, "roles hang on ids, not on order"


def test_settings_are_chosen_on_inputs_that_do_not_calibrate():
    y = np.repeat(np.arange(4), 100)
    ids = [f"i{i}" for i in range(400)]
    free = not_calibrating(ids, y, 3, calibration_apart=False)
    assert not set(free) & set(split(ids, y, 3).calibration)
    assert len(free) + len(split(ids, y, 3).calibration) == 400
    assert len(not_calibrating(ids, y, 3, calibration_apart=True)) == 400
    assert len(not_calibrating(ids[:300], y[:300], 3, calibration_apart=False)) == 300


def test_sigma_meets_no_calibration_input(monkeypatch):
    x, y = tiny.trusted()
    detector = Detector("tiny:trained", estimator="gaussian", draws=8)
    seen = []
    monkeypatch.setattr(type(detector.extractor), "draw", lambda self, trusted, data: seen.extend(trusted))
    source = open_data((x, y))
    rest, moved_by = take_draws(detector.extractor, source, None, None)
    assert (len(rest), moved_by) == (len(x), [])
    detector = Detector("tiny:trained", conformal="split").fit(x, y)
    chosen = {name for batch in seen for name in batch.ids}
    assert chosen
    assert not chosen & set(detector.judge.roles["calibration"])
