"""A window over a stream: what its latest inputs show together, validly, and beside the stream alarm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core_cases import synthetic
from covary.errors import CovaryError
from covary.scoring.judge import Judge
from covary.scoring.martingale import ConformalMartingale
from covary.scoring.pile.second_moment import SecondMoment
from covary.scoring.pile.together import judge_together
from covary.scoring.pile.window import Window, window_of
from covary.scoring.rows import Rows


def nudged(rows: Rows, by: float) -> Rows:
    """The rows with last features moved in one common direction, of which a single input shows little."""
    assert rows.features is not None
    return replace(rows, features=rows.features + by * np.eye(6, dtype=np.float32)[2])


def rows_of(n: int, seed: int, prefix: str = "s") -> Rows:
    rows, rng = synthetic(n, seed, prefix=prefix)[0], np.random.default_rng([seed, n])
    features = rng.standard_normal((n, 6)) + rows.predicted[:, None]
    return replace(rows, features=features.astype(np.float32), survival=rng.standard_normal((n, 3)))


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(fpr=0.05, conformal="split").fit(rows_of(400, 1))


def parts_of(rows: Rows, *cuts: int) -> list[Rows]:
    return [rows.take(index) for index in np.split(np.arange(len(rows)), cuts)]


def test_a_window_that_holds_a_whole_pile_judges_it_as_a_pile(judge):
    pile = rows_of(80, 2)
    seen, wanted = Window(judge)(pile), judge_together(judge, pile).judge(pile)
    np.testing.assert_allclose(seen.score, wanted.score, rtol=1e-9)
    np.testing.assert_allclose(seen.p_value, wanted.p_value)
    assert list(seen.parts) == list(wanted.parts)


@pytest.mark.parametrize("size", [20, 50, 200])
def test_a_window_holds_the_latest_inputs_and_no_others(judge, size):
    rows = rows_of(300, 3)
    window = Window(judge, size)
    for part in parts_of(rows, 7, 60, 61, 140, 230, 299):
        window(part)
    assert window.n == size
    latest = rows.take(np.arange(300 - size, 300))
    numbers = window._evidence.numbers(latest, window.score.measure(latest))
    for view, moment in window._moments.items():
        wanted = SecondMoment.of(window._evidence.whitened(view, numbers))
        assert moment.n == size
        np.testing.assert_allclose(moment.total, wanted.total, rtol=1e-8, atol=1e-8)


def test_a_batch_larger_than_the_window_leaves_its_end(judge):
    window = Window(judge, 30)
    assert len(window(rows_of(100, 4)).score) == 100
    assert window.n == 30


def test_the_latest_inputs_show_what_none_of_them_shows_alone(judge):
    clean, odd = rows_of(300, 5, "c"), nudged(rows_of(60, 6, "o"), 3.5)
    window = Window(judge)
    window(clean)
    window(odd.take(np.arange(50)))
    late = odd.take(np.arange(50, 60))
    together, alone = window(late).p_value, judge.judge(late).p_value
    assert np.median(together) < 0.5 * np.median(alone)


def test_clean_newcomers_are_flagged_no_more_often_than_asked_for():
    """Whatever batches they come in, and whatever else is in the window."""
    rates = []
    for seed in range(8):
        rows = rows_of(520, 100 + seed)
        judge = Judge(conformal="split").fit(rows.take(np.arange(400)))
        window = Window(judge, 100)
        window(nudged(rows_of(20, 200 + seed, "o"), 4.0))
        fresh = rows.take(np.arange(400, 520))
        found = [window(part).p_value for part in parts_of(fresh, *range(0, 120, 1 + 7 * (seed % 3)))[1:]]
        rates.append((np.concatenate(found) <= 0.1).mean())
    error = np.std(rates, ddof=1) / np.sqrt(len(rates))
    assert np.mean(rates) <= 12 / 121 + 4 * error


def test_the_stream_alarm_goes_by_single_scores_and_keeps_its_level_beside_a_window():
    """Many simulated clean streams, each with a window that looks at it: single scores and alarms are as without."""
    alarms, level = 0, 0.1
    judge = Judge(conformal="split").fit(rows_of(300, 7))
    pool = rows_of(4000, 8, "q")
    scores = judge.judge(pool).stream_score
    window = Window(judge, 50)
    for seed in range(150):
        order = np.random.default_rng([seed, 9]).permutation(4000)
        stream = ConformalMartingale(scores[order[:120]], level, seed)
        for part in np.split(order[120:420], 10):
            if seed < 2:
                some = pool.take(part)
                window(some)
                np.testing.assert_allclose(judge.judge(some).stream_score, scores[part], rtol=1e-12)
            stream.update(scores[part])
        alarms += stream.alarmed
    # Binomial(150, .1): more than 24 has a probability of .8 %.
    assert alarms <= 24


def test_what_cannot_have_a_window_is_told_or_goes_without(judge):
    with pytest.raises(CovaryError, match="window of 0 inputs"):
        Window(judge, 0)
    pairs = Judge("class-max", conformal="split").fit(rows_of(200, 10))
    with pytest.raises(CovaryError, match="class-max"):
        Window(pairs)
    assert window_of(pairs, 100) is None
    assert window_of(judge, 0) is None
