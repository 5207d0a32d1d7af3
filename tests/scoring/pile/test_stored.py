"""Numbers stored between two passes over a pile: verdicts are those of rows kept in memory."""

from __future__ import annotations

import numpy as np
import pytest

from core_cases import synthetic, with_more
from covary.scoring.judge import Judge
from covary.scoring.pile.stored import judged, store, verdicts_together
from covary.scoring.pile.together import added, judge_together, look


@pytest.mark.parametrize("conformal", ["split", "cross"])
def test_verdicts_from_stored_numbers_are_those_from_rows(conformal):
    judge = Judge(conformal=conformal).fit(with_more(synthetic(200, 1)[0]))
    pile = with_more(synthetic(90, 4, prefix="q")[0])
    parts = [store(judge, pile.take(np.arange(a, min(a + 40, 90)))) for a in (0, 40, 80)]
    seen = look(judge, added([sums for _, sums, _ in parts]))
    found = [judged(seen, stored) for stored, _, _ in parts]
    expected = judge_together(judge, pile).judge(pile)
    for name in ("score", "p_value", "flagged", "predicted", "stream_score"):
        full = np.concatenate([getattr(verdicts, name) for verdicts in found])
        np.testing.assert_allclose(full, getattr(expected, name), rtol=1e-8, err_msg=name)
    assert [kind for verdicts in found for kind in verdicts.kind] == expected.kind
    np.testing.assert_allclose(np.concatenate([v.kind_p for v in found]), expected.kind_p, rtol=1e-8)
    for kind, values in expected.parts.items():
        np.testing.assert_allclose(np.concatenate([v.parts[kind] for v in found]), values, rtol=1e-7, atol=1e-9)
    for kind in ("functional", "latent", "confidence"):
        full = np.concatenate([v.residuals[kind] for v in found])
        np.testing.assert_allclose(full, judge.judge(pile).residuals[kind], rtol=1e-9, atol=1e-12)


def test_measured_once_or_twice_the_verdicts_are_the_same(monkeypatch):
    judge = Judge().fit(with_more(synthetic(200, 1)[0]))
    pile = with_more(synthetic(90, 4, prefix="q")[0])
    expected = judge_together(judge, pile).judge(pile)
    monkeypatch.setattr("covary.scoring.pile.stored.AT_ONCE", 40)
    found = verdicts_together(judge, pile)
    assert [len(piece) for piece in found] == [40, 40, 10]
    for name in ("score", "p_value", "flagged"):
        full = np.concatenate([getattr(verdicts, name) for verdicts in found])
        np.testing.assert_allclose(full, getattr(expected, name), rtol=1e-8, err_msg=name)


def test_what_is_stored_says_of_each_input_alone_what_the_judge_says():
    judge = Judge().fit(with_more(synthetic(200, 1)[0]))
    pile = with_more(synthetic(30, 5, prefix="q")[0])
    _, _, alone = store(judge, pile)
    expected = judge.judge(pile)
    np.testing.assert_array_equal(alone.score, expected.score)
    np.testing.assert_array_equal(alone.p_value, expected.p_value)
    assert alone.copy_of == expected.copy_of
