"""Studies of piles: what they measure is what the library says, and their laws are those of a slow simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from covary.scoring.pile.together import judge_together
from covary.scoring.rows import Rows
from covary_bench.docs import pile as docs
from covary_bench.studies.pile import attackers, sizes, texts, validity
from covary_bench.studies.pile.dealt import WAYS, Deal, Material, pile_of
from covary_bench.studies.pile.rows import Stored


def rows(n: int, seed: int, moved: float = 0.0) -> Rows:
    """Random rows of three layers and two classes, each moved along one direction."""
    rng = np.random.default_rng(seed)
    functional = {str(i): (rng.standard_normal((n, 6)) + moved).astype(np.float32) for i in range(3)}
    return Rows(
        ids=[f"{seed}-{i}" for i in range(n)],
        predicted=rng.integers(0, 2, n),
        observable=rng.standard_normal(n),
        functional=functional,
        functional_norms=np.stack([np.linalg.norm(own, axis=1).astype(np.float64) for own in functional.values()], 1),
        latent={str(i): (rng.standard_normal((n, 4)) + moved).astype(np.float32) for i in range(3)},
        confidence={"margin": rng.standard_normal(n), "energy": rng.standard_normal(n)},
        features=rng.standard_normal((n, 5)).astype(np.float32),
        survival=rng.standard_normal((n, 3)) + moved,
    )


@pytest.fixture(scope="module")
def material() -> Material:
    clean, odd = rows(600, 0), replace(rows(120, 1, 1.0), predicted=np.repeat([0, 1], 60))
    return Material.of(Stored(clean, clean.predicted, None), triggered=Stored(odd, np.repeat([0, 1], [5, 115]), 0))


def test_anomalies_count_that_do_what_they_were_made_for(material):
    assert len(material.kinds["clean"]) == 600
    assert list(material.kinds["triggered"]) == list(range(600, 655)), "answered 0, and of another class"
    foreign = Stored(rows(3, 2), np.zeros(3, np.int64), None, harmless=True)
    assert list(foreign.succeed()) == [0, 1, 2]
    fooled = Stored(replace(rows(3, 2), predicted=np.array([0, 1, 1])), np.array([0, 0, 1]), None)
    assert list(fooled.succeed()) == [1]


def test_a_pile_has_as_many_of_each_kind_as_asked_for_and_no_trusted_input(material):
    rng = np.random.default_rng(0)
    known, left = material.draw(rng, 100)
    pile = pile_of(left, {"triggered": 7, "clean": 30}, rng)
    assert len(np.unique(pile)) == 37
    assert set(pile[:7]) <= set(material.kinds["triggered"])
    assert not set(pile) & set(known)
    with pytest.raises(ValueError, match="55 inputs of kind triggered"):
        pile_of(left, {"triggered": 61}, rng)


@pytest.mark.parametrize("conformal", ["split", "cross"])
def test_verdicts_of_a_deal_are_the_librarys(material, conformal):
    rng = np.random.default_rng(3)
    known, left = material.draw(rng, 150)
    # Candidates in another order than the pile's, most of them in no pile.
    deal = Deal(material, known, np.concatenate([left["triggered"], left["clean"][::-1]]), 5, conformal)
    pile = pile_of(left, {"triggered": 20, "clean": 60}, rng)
    fresh = material.rows.take(pile)
    for together, judge in ((True, judge_together(deal.judge, fresh)), (False, deal.judge)):
        expected, found = judge.judge(fresh), deal.verdicts(pile, together)
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-9)
        np.testing.assert_array_equal(found.p_value, expected.p_value)
        assert list(found.parts) == list(expected.parts)
    assert not np.allclose(deal.from_pile_alone(pile).score, deal.verdicts(pile, True).score)


def test_the_law_of_false_alarms_is_that_of_uniform_scores():
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(4_000):
        calibration, clean = rng.random(150), rng.random(validity.CLEAN)
        p = (1 + (calibration[:, None] >= clean).sum(0)) / 151
        counts.append(int((p <= 0.05).sum()))
    law = validity.law(150, 0.05)
    assert law.mean() == pytest.approx(np.mean(counts), rel=0.03)
    assert law.std() == pytest.approx(np.std(counts), rel=0.05)
    deals = [{way: [[0, count]] for way in validity.WAYS} for count in counts[:1_000]]
    told = validity.summary(deals, 150, lawful=True)
    mean, _, inside, gap = told["together"][0][1]
    assert (mean, inside) == pytest.approx((told["law"][1][0], told["law"][1][1]), abs=0.01)
    assert gap < 1.63 < validity.summary([{way: [[0, count + 6]] for way in validity.WAYS} for count in counts[:1_000]],
                                         150, lawful=True)["alone"][0][1][3]  # fmt: skip


def test_deals_are_summed_up_by_mean_and_standard_error(material, monkeypatch):
    monkeypatch.setattr(sizes, "SIZES", (60,))
    monkeypatch.setattr(sizes, "SHARES", (0.0, 0.001, 0.5))
    small = replace(material, kinds={"clean": material.kinds["clean"][:560], "triggered": material.kinds["triggered"]})
    deals = [sizes.one_deal(small, "triggered", seed) for seed in (0, 1)]
    assert list(deals[0]) == ["together, thorough", "alone, thorough", "together", "alone"]
    assert list(deals[0]["alone"]["60"]) == ["0.0", "0.5"], "no share below one input"
    told = sizes.summary(deals)["together"]["60"]
    assert told["0.0"][:2] == [None, None], "nobody to catch"
    one, other = (deal["together"]["60"]["0.5"][0] for deal in deals)
    assert len(told["0.5"]) == 4
    assert told["0.5"][:2] == pytest.approx([(one + other) / 2, abs(one - other) / 2], abs=1e-3)


def test_attackers_are_asked_about_on_the_same_piles_whatever_the_evidence(material, monkeypatch):
    monkeypatch.setattr(attackers, "CLEAN", 50)
    monkeypatch.setattr(attackers, "ODD", (40, 5))
    found = attackers.one_deal(material, 0)
    assert set(found) == set(WAYS)
    assert all(len(figures) == 6 for figures in found.values())
    assert found["together, thorough"][0] > 0.9
    means, errors = attackers.mean_and_error([[1.0, 2.0], [3.0, 2.0]])
    assert (means, errors) == ([2.0, 2.0], [1.0, 0.0])


def test_a_trigger_word_stands_once_in_every_passage():
    rng = np.random.default_rng(0)
    found = texts.triggered(["a b c", "d"], rng)
    assert [[word for word in text.split() if word != texts.TRIGGER] for text in found] == [["a", "b", "c"], ["d"]]
    assert all(text.split().count(texts.TRIGGER) == 1 for text in found)


def test_what_was_not_timed_says_so():
    record = {"times": {"fast": 3.2, "thorough": 6.1, "load": [2.0, 3.5]}}
    told = docs.cost(record).splitlines()
    assert told[3] == "| Rows, thorough, in forwards | at most 6.5 | 6.10 | 2 to 3.5 |"
    assert sum("not measured" in line for line in told) == 5
    million = {"inputs": 1_000_000, "MB": 900, "processor seconds": 300, "load": [1.0, 1.0]}
    assert "900 MB, 300 processor seconds" in docs.cost({"million": million})
