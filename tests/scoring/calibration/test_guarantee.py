"""False alarms counted over right answers: who ranks, what is told, and that the rate holds over right answers."""

from __future__ import annotations

import numpy as np
import pytest

from core_cases import synthetic
from covary.errors import CovaryError
from covary.scoring.calibration.guarantee import calibrate_on_right
from covary.scoring.judge import Judge
from covary.scoring.pile.together import judge_together


def test_right_answers_alone_rank_and_keep_their_rate():
    rates, all_rates = [], []
    for seed in range(10):
        rows, labels = synthetic(800, 300 + seed, wrong=0.2)
        right = rows.predicted == labels
        trusted, queries = np.arange(400), np.arange(400, 800)
        judge = Judge().fit(rows.take(trusted), labels[trusted])
        all_rates.append((judge.judge(rows.take(queries)).p_value[right[queries]] <= 0.1).mean())
        calibrate_on_right(judge, [rows.ids[i] for i in trusted[right[trusted]].tolist()])
        rates.append((judge.judge(rows.take(queries)).p_value[right[queries]] <= 0.1).mean())
    error = np.std(rates, ddof=1) / np.sqrt(len(rates))
    assert abs(np.mean(rates) - 0.1) <= 0.01 + 4 * error
    assert np.mean(all_rates) < np.mean(rates) - 0.01


@pytest.mark.parametrize("n", [400, 150])
def test_a_look_at_a_pile_ranks_among_the_same_samples(n):
    rows, labels = synthetic(n, 5, wrong=0.2)
    judge = Judge().fit(rows, labels)
    every = judge_together(judge, synthetic(60, 6, prefix="q")[0])
    ids = list(judge.calibration_ids)
    right = [name for name, known in zip(rows.ids, (rows.predicted == labels).tolist(), strict=True) if known]
    seen = judge_together(calibrate_on_right(judge, right), synthetic(60, 6, prefix="q")[0])
    expected = every.calibration_scores[[ids.index(name) for name in judge.calibration_ids]]
    np.testing.assert_allclose(seen.calibration_scores, expected)
    assert len(seen.calibration_scores) < len(ids)
    assert any("answers right" in statement for statement in seen.statements)


def test_too_few_right_answers_are_told():
    judge = Judge().fit(synthetic(400, 7)[0])
    with pytest.raises(CovaryError, match="answers right"):
        calibrate_on_right(judge, judge.calibration_ids[:3])
