"""What kind of oddness an input shows: told right where it is plain, with a p-value that holds over clean inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core_cases import synthetic
from covary.errors import CovaryError
from covary.scoring.calibration.conformal import conformal_p
from covary.scoring.conditional.confidence import AtEqualConfidence
from covary.scoring.judge import Judge
from covary.scoring.kinds import COPY, KINDS, MECHANISM, OVERCONFIDENT, UNSURE
from covary.scoring.pile.together import judge_together
from covary.scoring.rows import Rows
from covary.scoring.scores.among_like import OddAmongLike
from covary.scoring.scores.tails import Tail


def moved(rows: Rows, by: float) -> Rows:
    """The rows with margins moved, and nothing else."""
    return replace(rows, confidence={**rows.confidence, "margin": rows.confidence["margin"] + by})


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(fpr=0.05, conformal="split").fit(synthetic(500, 1)[0])


def share(names: list[str], kind: str) -> float:
    return float(np.mean([name == kind for name in names]))


@pytest.mark.parametrize("together", [False, True])
def test_kinds_are_told_where_they_are_plain(judge, together):
    fresh = synthetic(60, 2, prefix="q")[0]
    piles = {
        MECHANISM: synthetic(60, 3, foreign=True, prefix="f")[0],
        OVERCONFIDENT: moved(fresh, 9.0),
        UNSURE: moved(fresh, -9.0),
    }
    for kind, rows in piles.items():
        verdicts = (judge_together(judge, rows) if together else judge).judge(rows)
        assert share(verdicts.kind, kind) > 0.85, kind
        assert np.median(verdicts.kind_p) <= 3.01 / (len(judge.calibration_scores) + 1)


def test_a_copy_is_told_as_one_whatever_else_it_shows(judge):
    verdicts = judge.judge(moved(judge.reference.take(np.arange(8)), 9.0))
    assert verdicts.kind == [COPY] * 8
    assert (verdicts.kind_p == 1).all()


def test_an_odd_input_behind_an_unsure_answer_is_no_other_mechanism(judge):
    odd = synthetic(60, 4, foreign=True, prefix="f")[0]
    assert share(judge.judge(moved(odd, -12.0)).kind, UNSURE) == 1.0


@pytest.mark.parametrize("n", [400, 120])
def test_clean_inputs_get_a_small_p_of_kind_no_more_often_than_it_says(n):
    rates = []
    for seed in range(8):
        rows = synthetic(n + 150, 50 + seed)[0]
        judge = Judge(conformal="auto").fit(rows.take(np.arange(n)))
        verdicts = judge.judge(rows.take(np.arange(n, n + 150)))
        assert set(verdicts.kind) <= {*KINDS, COPY}
        rates.append((verdicts.kind_p <= 0.15).mean())
    error = np.std(rates, ddof=1) / np.sqrt(len(rates))
    assert np.mean(rates) <= 0.15 + 3 * error


def test_kinds_of_a_pile_are_those_of_its_rows_in_any_order(judge):
    rows = Rows.concatenate([synthetic(40, 5, prefix="c")[0], synthetic(20, 6, foreign=True, prefix="f")[0]])
    order = np.random.default_rng(7).permutation(60)
    one, other = judge.judge(rows), judge.judge(rows.take(order))
    assert [one.kind[i] for i in order.tolist()] == other.kind
    np.testing.assert_allclose(one.kind_p[order], other.kind_p)


def test_a_network_without_margins_has_no_kinds():
    def without(rows: Rows) -> Rows:
        return replace(rows, confidence={"observable": rows.observable})

    judge = Judge(conformal="split").fit(without(synthetic(300, 8)[0]))
    verdicts = judge.judge(without(synthetic(20, 9, prefix="q")[0]))
    assert (verdicts.kind, len(verdicts.kind_p)) == ([], 0)
    with pytest.raises(CovaryError, match="at equal confidence"):
        Judge("equal-confidence", conformal="split").fit(without(synthetic(300, 8)[0]))
    assert Judge("class-max", conformal="split").fit(synthetic(300, 8)[0]).judge(synthetic(20, 9)[0]).kind == []


def test_evidence_at_equal_confidence_is_the_tail_of_what_it_is_made_of():
    rng = np.random.default_rng(10)
    values, margins, fresh, at = (rng.standard_normal(n) for n in (60, 60, 9, 9))
    plain = AtEqualConfidence().fit(values, margins)
    expected = -Tail().fit(plain.fit_).log_p(plain(fresh, at))
    np.testing.assert_allclose(OddAmongLike().fit(values, margins)(fresh, at), expected)


def hard(n: int, seed: int, prefix: str = "s") -> tuple[Rows, np.ndarray]:
    """Rows that are odd where the network is unsure, and which of them it is unsure of."""
    rows = synthetic(n, seed, prefix=prefix)[0]
    rng = np.random.default_rng([seed, 5])
    unsure = rng.random(n) < 0.15
    noise = {
        name: (own + 0.9 * unsure[:, None] * rng.standard_normal(own.shape)).astype(np.float32)
        for name, own in rows.functional.items()
    }
    margin = rows.confidence["margin"] - 4.0 * unsure
    return replace(rows, functional=noise, confidence={**rows.confidence, "margin": margin}), unsure


def rate(score: str, chosen: bool, alpha: float = 0.1) -> float:
    """Realised rate over unsure clean inputs, or over all clean ones."""
    rates = []
    for seed in range(5):
        judge = Judge(score, fpr=alpha, conformal="split").fit(hard(500, 70 + seed)[0])
        rows, unsure = hard(400, 90 + seed, "q")
        p = judge.judge(rows).p_value
        rates.append((p[unsure] <= alpha).mean() if chosen else (p <= alpha).mean())
    return float(np.mean(rates))


def test_at_equal_confidence_unsure_inputs_are_flagged_at_most_twice_as_often_as_asked_for():
    assert rate("combined", chosen=True) > 0.3
    assert rate("equal-confidence", chosen=True) <= 0.2


def test_at_equal_confidence_the_rate_holds():
    # 150 calibration samples, five of them: a standard error of about .012.
    assert rate("equal-confidence", chosen=False) == pytest.approx(0.1, abs=0.04)


def test_at_equal_confidence_another_mechanism_is_seen_as_well_and_in_piles():
    judge = Judge("equal-confidence", fpr=0.05, conformal="split").fit(synthetic(500, 11)[0])
    rows = Rows.concatenate([synthetic(100, 12, prefix="c")[0], synthetic(30, 13, foreign=True, prefix="f")[0]])
    for own in (judge, judge_together(judge, rows)):
        verdicts = own.judge(rows)
        assert verdicts.flagged[100:].all()
        assert verdicts.flagged[:100].mean() < 0.15
        # p-values are ranks of the score among calibration samples, whatever the score.
        np.testing.assert_allclose(verdicts.p_value, conformal_p(verdicts.score, own.calibration_scores))
