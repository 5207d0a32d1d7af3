"""A pile judged together: symmetric in calibration and pile, the same in parts, valid on clean piles, seeing more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core_cases import synthetic, with_more
from covary.errors import CovaryError
from covary.scoring.judge import Judge
from covary.scoring.pile.together import added, judge_together, look, sums, views
from covary.scoring.rows import Rows
from covary.scoring.scores.joined import joined


def trusted(n: int = 400, seed: int = 1) -> Rows:
    return with_more(synthetic(n, seed)[0])


def nudged(rows: Rows, by: float) -> Rows:
    """The rows with last features moved in one common direction, of which a single input shows little."""
    assert rows.features is not None
    return replace(rows, features=rows.features + by * np.eye(6, dtype=np.float32)[2])


def test_calibration_samples_and_clean_inputs_are_treated_alike():
    """Dealing them out anew deals their scores out anew and changes nothing else."""
    fitted, others = trusted(), with_more(synthetic(160, 2, prefix="q")[0])
    order = np.random.default_rng(3).permutation(160)
    scores = []
    for split_roles in (np.arange(160), order):
        judge = Judge().fit(fitted, calibration=others.take(split_roles[:90]))
        seen = judge_together(judge, others.take(split_roles[90:]))
        both = np.concatenate([seen.calibration_scores, seen.judge(others.take(split_roles[90:])).score])
        scores.append(both[np.argsort(split_roles)])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-8)


@pytest.mark.parametrize("n", [400, 120])
def test_sums_of_partitions_give_the_verdicts_of_one_pass(n):
    judge, pile = Judge().fit(trusted(n)), with_more(synthetic(150, 4, prefix="q")[0])
    full = judge_together(judge, pile).judge(pile)
    parts = [sums(judge, pile.take(np.arange(a, min(a + 37, 150)))) for a in range(0, 150, 37)]
    apart = look(judge, added(parts)).judge(pile)
    np.testing.assert_allclose(apart.score, full.score, rtol=1e-6)
    assert (apart.flagged == full.flagged).all()


def test_calibration_scores_of_every_fold_stand_in_the_judge_s_order():
    rows = trusted(120)
    judge = Judge().fit(rows)
    seen = judge_together(judge, with_more(synthetic(60, 5, prefix="q")[0]))
    for score, split_roles in zip(seen.scores_, judge.splits_, strict=True):
        own = score.measure(rows.take(split_roles.calibration)).score
        places = [judge.calibration_ids.index(rows.ids[i]) for i in split_roles.calibration.tolist()]
        np.testing.assert_allclose(seen.calibration_scores[places], own)


def test_a_pile_shows_what_no_input_shows_alone():
    judge = Judge().fit(trusted())
    clean = with_more(synthetic(300, 6, prefix="c")[0])
    odd = nudged(with_more(synthetic(60, 7, prefix="o")[0]), 2.5)
    pile = Rows.concatenate([clean, odd])
    alone, together = judge.judge(pile), judge_together(judge, pile).judge(pile)

    def auroc(scores: np.ndarray) -> float:
        return float((scores[300:, None] > scores[None, :300]).mean())

    assert auroc(together.parts["pile features"]) > 0.85
    assert auroc(together.score) > auroc(alone.score) + 0.2
    assert set(together.parts) >= {"functional", "latent", "confidence", "survival", "pile", "pile features"}


def test_fit_and_reference_samples_whiten_and_both_are_as_long_as_fresh_ones():
    judge = Judge(conformal="split").fit(trusted(800))
    (evidence,), fresh = views(judge), with_more(synthetic(800, 9, prefix="q")[0])
    n_fit, n_reference = (len(judge.roles[role]) for role in ("fit", "reference"))
    numbers = evidence.numbers(fresh, judge.scores_[0].measure(fresh))
    for view, whitening in evidence.whitenings_.items():
        lengths = np.linalg.norm(whitening.held_, axis=1)
        own = np.linalg.norm(evidence.whitened(view, numbers), axis=1).mean()
        assert len(lengths) == n_fit + n_reference
        np.testing.assert_allclose([lengths[:n_fit].mean(), lengths[n_fit:].mean()], own, rtol=0.1)


def test_clean_piles_keep_their_false_alarm_rate():
    rates = []
    for seed in range(12):
        rows = with_more(synthetic(560, 100 + seed)[0])
        judge = Judge().fit(rows.take(np.arange(400)))
        pile = rows.take(np.arange(400, 560))
        rates.append((judge_together(judge, pile).judge(pile).p_value <= 0.1).mean())
    # 12 of 121 ranks; calibration and pile are both finite, which the spread of the rates tells.
    error = np.std(rates, ddof=1) / np.sqrt(len(rates))
    assert np.mean(rates) <= 12 / 121 + 4 * error


def test_a_blind_or_inverted_piece_takes_nothing_away():
    clear, blind = np.array([8.0, 0.5]), np.array([0.0, 2.0])
    assert joined([clear, blind])[0] == pytest.approx(8.0)
    assert (joined([clear, blind]) >= joined([clear])).all()
    assert joined([clear, np.array([1.0, 1.0])])[0] < 8.01


def test_the_cubic_norm_is_what_it_says():
    pieces = [np.array([1.0, 2.0]), np.array([3.0, 0.5]), np.array([0.2, 4.0])]
    slow = [sum(float(piece[i]) ** 3 for piece in pieces) ** (1 / 3) for i in range(2)]
    np.testing.assert_allclose(joined(pieces), slow)


def test_a_score_without_parts_cannot_look_at_a_pile():
    judge = Judge("class-max").fit(trusted())
    with pytest.raises(CovaryError, match="combined"):
        judge_together(judge, with_more(synthetic(30, 8)[0]))


def test_rows_without_features_or_survival_are_judged_by_what_they_have():
    judge = Judge().fit(synthetic(400, 9)[0])
    pile = synthetic(50, 10, prefix="q")[0]
    verdicts = judge_together(judge, pile).judge(pile)
    assert "pile features" not in verdicts.parts
    assert "survival" not in verdicts.parts
    assert "pile latent" in verdicts.parts
