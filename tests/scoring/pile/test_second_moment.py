"""Pile evidence against slow oracles; its symmetry in calibration and pile; what breaks without it."""

from __future__ import annotations

import numpy as np
import pytest

from covary.scoring.calibration.conformal import conformal_p
from covary.scoring.pile.second_moment import Directions, SecondMoment, Whitening

RNG = np.random.default_rng


def slow_evidence(samples: np.ndarray, together: np.ndarray, sharpness: float) -> np.ndarray:
    """q as written in the paper, one direction and one sample at a time."""
    moment = sum(np.outer(x, x) for x in together) / len(together)
    values, vectors = np.linalg.eigh(moment)
    found = []
    for x in samples:
        total = 0.0
        for value, vector in zip(values, vectors.T, strict=True):
            total += np.exp(sharpness * (value - 1) / (values.max() - 1)) * float(vector @ x) ** 2
        found.append(np.log(total))
    return np.array(found)


def test_evidence_is_that_of_the_slow_oracle():
    together = RNG(0).standard_normal((80, 7)) * 1.2
    found = Directions(SecondMoment.of(together), 4.0).evidence(together[:20])
    np.testing.assert_allclose(found, slow_evidence(together[:20], together, 4.0), rtol=1e-4)


def test_sharpness_zero_is_the_plain_length():
    together = RNG(1).standard_normal((60, 5))
    found = Directions(SecondMoment.of(together), 0.0).evidence(together)
    np.testing.assert_allclose(found, np.log(np.square(together).sum(1)), rtol=1e-4)


@pytest.mark.parametrize("cuts", [[13], [1, 2, 90], [50, 51]])
def test_sums_of_parts_are_those_of_the_whole(cuts):
    x = RNG(2).standard_normal((100, 6))
    full = SecondMoment.of(x)
    parts = SecondMoment.sum(SecondMoment.of(part) for part in np.split(x, cuts))
    assert parts.n == full.n
    np.testing.assert_allclose(parts.total, full.total, rtol=1e-12, atol=1e-12)


def test_a_window_slides_by_taking_the_oldest_off():
    x = RNG(3).standard_normal((30, 4))
    window = SecondMoment.of(x[:20]) + SecondMoment.of(x[20:]) - SecondMoment.of(x[:10])
    np.testing.assert_allclose(window.total, SecondMoment.of(x[10:]).total, rtol=1e-10, atol=1e-12)
    assert window.n == 20


def test_whitened_fresh_samples_have_about_unit_spread_and_no_outlier_is_long():
    rng = RNG(4)
    mixing = rng.standard_normal((8, 8))
    fit, fresh = rng.standard_normal((400, 8)) @ mixing + 3, rng.standard_normal((400, 8)) @ mixing + 3
    whitening = Whitening().fit(fit)
    assert np.square(whitening(fresh)).mean() == pytest.approx(1.0, abs=0.2)
    wild = whitening(fresh[:1] * 1e6)
    assert np.linalg.norm(wild) == pytest.approx(whitening.longest_)


def test_held_out_fit_samples_are_as_long_as_fresh_ones():
    """With more numbers than samples a sample whitened by itself would be far too short."""
    rng = RNG(5)
    fit, fresh = rng.standard_normal((90, 120)), rng.standard_normal((300, 120))
    whitening = Whitening().fit(fit)
    own = np.linalg.norm(whitening.held_, axis=1).mean()
    assert own == pytest.approx(np.linalg.norm(whitening(fresh), axis=1).mean(), rel=0.1)


def test_calibration_and_pile_are_treated_alike():
    """Swapping clean inputs of the pile with calibration samples swaps their evidence and changes nothing else."""
    rng = RNG(6)
    calibration, pile = rng.standard_normal((40, 5)), rng.standard_normal((60, 5)) + 0.2
    order = rng.permutation(100)
    both = np.concatenate([calibration, pile])
    before = Directions(SecondMoment.of(calibration) + SecondMoment.of(pile)).evidence(both)
    split_roles = both[order]
    after = Directions(SecondMoment.of(split_roles[:40]) + SecondMoment.of(split_roles[40:])).evidence(split_roles)
    np.testing.assert_allclose(after, before[order], rtol=1e-9)


def false_alarms(learn_from_pile_alone: bool, trials: int = 150, anomalous: int = 0, alpha: float = 0.1) -> float:
    """Realised rate over clean inputs of simulated piles: 60 calibration samples, 60 clean inputs, 40 numbers."""
    rng, rates = RNG(7), []
    for _ in range(trials):
        calibration, clean = rng.standard_normal((60, 40)), rng.standard_normal((60, 40))
        odd = rng.standard_normal((anomalous, 40)) + 1.0
        pile = np.concatenate([clean, odd])
        learned = pile if learn_from_pile_alone else np.concatenate([calibration, pile])
        directions = Directions(SecondMoment.of(learned))
        p = conformal_p(directions.evidence(clean), directions.evidence(calibration))
        rates.append((p <= alpha).mean())
    return float(np.mean(rates))


@pytest.mark.parametrize("anomalous", [0, 12])
def test_p_values_hold_whatever_is_in_the_pile(anomalous):
    # 6 of 61 ranks: P(p <= .1) = 6/61; the mean over 150 piles has a standard error of about .004.
    assert false_alarms(False, anomalous=anomalous) == pytest.approx(6 / 61, abs=0.015)


def test_learning_from_the_pile_alone_breaks_p_values():
    assert false_alarms(True) > 0.2
