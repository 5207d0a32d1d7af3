"""The stream alarm: exact ranks, bets that are fair, few false alarms, changes caught and told apart."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from covary.errors import CovaryError
from covary.scoring.martingale import ConformalMartingale
from covary.scoring.martingale.bets import JUMP, Jumper, PlannedBets
from covary.scoring.martingale.ranks import OnlineRanks


def normal(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return shift + np.random.default_rng(seed).normal(size=n)


def trickle(n: int, seed: int, share: float = 0.01) -> np.ndarray:
    scores = normal(n, seed)
    odd = np.random.default_rng([seed, 1]).random(n) < share
    scores[odd] += 8
    return scores


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0, 1e30]), max_size=30), st.integers(0, 12), st.integers(0)
)
def test_ranks_are_those_of_a_loop(scores, bag, seed):
    scores = np.array(scores)
    bag = min(bag, len(scores))
    found = OnlineRanks(scores[:bag], seed)(scores[bag:])
    lots = 1.0 - np.random.default_rng(seed).random(len(scores) - bag)
    for i, (p, lot) in enumerate(zip(found, lots, strict=True)):
        t = bag + i
        above = sum(s > scores[t] for s in scores[: t + 1])
        equal = sum(s == scores[t] for s in scores[: t + 1])
        assert p == pytest.approx((above + lot * equal) / (t + 1), abs=0)


def test_ranks_keep_the_order_of_any_floats():
    scores = np.array([-np.inf, -1e30, -3.0, -1e-3, 0.0, 1e-3, 1.0, 1.001, 50.0, 1e30, np.inf])
    for i in range(1, len(scores)):
        below, above = OnlineRanks(np.delete(scores, i), 0), OnlineRanks(np.delete(scores, i), 0)
        (p,) = below(scores[i : i + 1])
        assert (len(scores) - 1 - i) / len(scores) < p <= (len(scores) - i) / len(scores)
        assert above.size == len(scores) - 1
    assert OnlineRanks(np.array([-0.0]), 0)(np.array([0.0]))[0] > 0


def test_ranks_are_uniform_and_independent_with_and_without_ties():
    for scores in (normal(6000, 1), np.round(normal(6000, 2)), np.zeros(6000)):
        p = OnlineRanks(scores[:300], 3)(scores[300:])
        assert kstest(p, "uniform").pvalue > 0.001
        assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 0.05


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(CovaryError, match="not a number"):
        OnlineRanks(np.zeros(3), 0)(np.array([np.nan]))


@pytest.mark.parametrize("kind", [lambda: PlannedBets(300), Jumper])
def test_the_next_bet_is_fair(kind):
    """Given any past, the capital's mean over a uniform rank is the capital there is."""
    bets = kind()
    before = bets(np.random.default_rng(5).random(700) ** 1.5)[-1]
    ranks = (np.arange(2000) + 0.5) / 2000
    after = [math.exp(copy.deepcopy(bets)(np.array([p]))[0] - before) for p in ranks]
    assert np.mean(after) == pytest.approx(1, rel=0.01)
    assert np.ptp(after) > 0.01


def test_plans_against_a_loop():
    p = np.random.default_rng(3).random(200) ** 2
    bets = PlannedBets(50)
    onset, share, level, log_stakes = bets.onset, bets.share, bets.level, bets.log_stakes.copy()
    assert math.fsum(np.exp(log_stakes)) == pytest.approx(1)
    capital = np.exp(log_stakes)
    expected = []
    for t, rank in enumerate(p, start=1):
        for j in range(len(capital)):
            u = t - onset[j]
            if u <= 0:
                continue
            r = share[j] * u / (50 + onset[j] + u)
            mass = share[j] + (1 - share[j]) * level[j]
            width = r + (1 - r) * level[j]
            capital[j] *= mass / width if rank <= width else (1 - mass) / (1 - width)
        expected.append(math.log(capital.sum()))
    np.testing.assert_allclose(bets(p), expected, rtol=1e-9, atol=1e-9)
    assert sum(plan.weight for plan in bets.plans(0.0)) <= 1 + 1e-9


def test_the_jumper_against_a_loop():
    p = np.random.default_rng(4).random(300) ** 0.7
    stakes = {-1: 1 / 3, 0: 1 / 3, 1: 1 / 3}
    expected = []
    for rank in p:
        total = sum(stakes.values())
        stakes = {e: ((1 - JUMP) * c + JUMP * total / 3) * (1 + e * (rank - 0.5)) for e, c in stakes.items()}
        expected.append(math.log(sum(stakes.values())))
    np.testing.assert_allclose(Jumper()(p), expected, rtol=1e-9, atol=1e-9)


def test_blocks_change_nothing():
    scores = trickle(900, 6)
    full, parts = ConformalMartingale(normal(200, 7)), ConformalMartingale(normal(200, 7))
    path = full.update(scores)
    pieces = [parts.update(some) for some in np.split(scores, [1, 2, 300, 300, 811])]
    np.testing.assert_allclose(np.concatenate(pieces), path, rtol=1e-9, atol=1e-9)
    assert (parts.n, parts.alarm_at) == (full.n, full.alarm_at) == (900, full.alarm_at)
    assert full.log_peak == pytest.approx(path.max())


def test_few_clean_streams_alarm():
    """At a level of 1/4 so that a short test can see too many; 25 expected at most, 40 is 3.5 deviations more."""
    alarms = 0
    for seed in range(100):
        martingale = ConformalMartingale(normal(100, seed), level=0.25, seed=seed)
        martingale.update(normal(1000, 10_000 + seed))
        alarms += martingale.alarmed
    assert alarms <= 40


def test_a_fixed_calibration_set_alone_would_alarm_too_often():
    """Why ranks go online: ranks among the calibration set alone share its accidents."""
    alarms = 0
    for seed in range(40):
        calibration, stream = np.sort(normal(100, seed)), normal(3000, 20_000 + seed)
        lots = np.random.default_rng(seed).random(len(stream))
        above = len(calibration) - np.searchsorted(calibration, stream)
        alarms += Jumper()((above + lots) / 101).max() > math.log(100)
    assert alarms > 4


def test_a_trickle_is_caught_and_told_as_few_very_odd():
    martingale = ConformalMartingale(normal(2000, 11))
    martingale.update(trickle(8000, 12))
    assert martingale.alarmed
    account = martingale.account()
    assert account.kind == "few very odd"
    assert account.alarm
    assert account.share == 0.01
    assert account.text.startswith(f"Alarm raised at input {martingale.alarm_at:,}. About 1 % of the inputs")
    assert "attack" in account.text


def test_a_drift_is_caught_and_told_as_many_slightly_odd():
    martingale = ConformalMartingale(normal(400, 13))
    martingale.update(np.concatenate([normal(500, 14), normal(3000, 15, shift=0.4)]))
    assert martingale.alarmed
    assert martingale.account().kind == "many slightly odd"
    assert "drift" in martingale.account().text


def test_a_broken_source_is_told_as_many_very_odd():
    martingale = ConformalMartingale(normal(400, 16))
    martingale.update(normal(300, 17, shift=7))
    assert martingale.account().kind == "many very odd"


def test_easier_inputs_are_told_as_less_odd():
    martingale = ConformalMartingale(normal(400, 18))
    martingale.update(normal(900, 19, shift=-0.8))
    assert martingale.alarmed
    assert martingale.account().kind == "less odd"


def test_a_clean_stream_is_told_as_nothing():
    martingale = ConformalMartingale(normal(400, 20))
    assert martingale.account().text.startswith("0 inputs compared")
    martingale.update(normal(500, 21))
    account = martingale.account()
    assert (account.kind, account.alarm) == ("nothing", False)
    assert account.to_json()["since"] is None


def test_evidence_short_of_an_alarm_is_told_with_both_numbers():
    martingale = ConformalMartingale(normal(2000, 22), level=1e-9)
    martingale.update(trickle(2000, 23))
    assert not martingale.alarmed
    assert "alarm at 1,000,000,000 to 1" in martingale.account().text


def test_an_empty_calibration_set_tests_the_stream_against_itself():
    martingale = ConformalMartingale(np.empty(0))
    martingale.update(np.concatenate([normal(2000, 24), normal(400, 25, shift=6)]))
    assert 2000 < (martingale.alarm_at or 0) < 2100


def test_infinite_scores_rank_first():
    martingale = ConformalMartingale(normal(400, 26))
    martingale.update(np.full(20, np.inf))
    assert martingale.alarmed


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_levels_that_are_none(level):
    with pytest.raises(CovaryError, match="between 0 and 1"):
        ConformalMartingale(np.zeros(3), level=level)
