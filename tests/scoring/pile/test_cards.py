"""Cards of a pile: valid on piles without anomalies, true to who is of one kind, and what each of them says."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from core_cases import synthetic
from covary.errors import CovaryError
from covary.scoring.judge import Judge
from covary.scoring.pile import cards as module
from covary.scoring.pile.cards import Card, Cards, find_cards, mean_rank, nearest_middle
from covary.scoring.pile.directions import far_ends, leading, min_p, varimax
from covary.scoring.pile.second_moment import SecondMoment
from covary.scoring.rows import Rows

RNG = np.random.default_rng


def with_more(rows: Rows, seed: int, features: float = 0.0, survival: float = 0.0, axis: int = 2) -> Rows:
    """The rows with features of their own class, moved along one axis, and with survival, moved as a whole."""
    rng = RNG([seed, len(rows)])
    plain = rng.standard_normal((len(rows), 6)) + rows.predicted[:, None] + features * np.eye(6)[axis]
    return replace(
        rows, features=plain.astype(np.float32), survival=rng.standard_normal((len(rows), 3)) + survival
    )


def plain(n: int, seed: int, prefix: str = "s", **moved: float) -> Rows:
    return with_more(synthetic(n, seed, prefix=prefix)[0], seed, **moved)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(conformal="split").fit(plain(500, 1))


def unsure(rows: Rows) -> Rows:
    return replace(rows, confidence={"margin": rows.confidence["margin"] - 5, "energy": rows.confidence["energy"] + 5})


def test_permutation_p_values_are_those_of_all_relabellings():
    """Against every possible deal of few samples, written out."""
    values, in_pile = RNG(0).exponential(size=(9, 2)), np.arange(9) >= 4
    values[in_pile] *= 3

    def statistics(rest: tuple[int, ...]) -> np.ndarray:
        others = [i for i in range(9) if i not in rest]
        return values[others].mean(0) - values[list(rest)].mean(0)

    every = np.array([statistics(rest) for rest in combinations(range(9), 4)])
    own = np.array([[(every[:, c] >= row[c] - 1e-12).mean() for c in range(2)] for row in every])
    observed = [(every[:, c] >= statistics((0, 1, 2, 3))[c] - 1e-12).mean() for c in range(2)]
    expected = [(own.min(1) <= p + 1e-12).mean() for p in observed]
    found = min_p(values, in_pile, RNG(1), 1999)
    np.testing.assert_allclose(found, expected, atol=0.04)


def test_varimax_gives_back_axes_along_which_kinds_lie():
    rng = RNG(4)
    kinds = np.eye(3)[rng.integers(3, size=600)] * 6
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    scores = (kinds + 0.3 * rng.standard_normal((600, 3))) @ turn
    rotation = varimax(scores)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-10)
    assert (np.abs(turn @ rotation).max(1) > 0.99).all()
    np.testing.assert_allclose(np.abs(varimax(scores[::-1])), np.abs(rotation), atol=1e-6)


def test_leading_directions_are_those_of_the_whole_decomposition():
    x = RNG(5).standard_normal((50, 12)) * np.arange(1, 13)
    vectors = leading(SecondMoment.of(x), 4)
    _, every = np.linalg.eigh(x.T @ x / 50)
    np.testing.assert_allclose(np.abs(vectors.T @ every[:, ::-1][:, :4]), np.eye(4), atol=1e-8)
    assert leading(SecondMoment.of(x[:, :3]), 8).shape == (3, 3)


def least_p(piles: int, of_pile_alone: bool = False) -> np.ndarray:
    """Smallest p-value of simulated piles without anomalies: 40 calibration samples, 80 inputs, 30 numbers."""
    in_pile, found = np.arange(120) >= 40, []
    for seed in range(piles):
        x = RNG([16, seed]).standard_t(5, (120, 30)) * np.linspace(0.7, 1.5, 30)
        vectors = leading(SecondMoment.of(x[in_pile] if of_pile_alone else x), 8)
        found.append(far_ends(x @ vectors, in_pile, RNG([17, seed]), 99)[1].min())
    return np.array(found)


def test_piles_without_anomalies_show_a_card_no_more_often_than_the_level_says():
    found = least_p(250)
    for level in (0.1, 0.2, 0.4):
        # Three standard errors.
        assert (found <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 250)


def test_directions_learned_from_the_pile_alone_would_show_cards_where_there_is_nothing():
    assert (least_p(40, of_pile_alone=True) <= 0.4).mean() > 0.65


@pytest.mark.parametrize(("trusted", "conformal"), [(160, "split"), (100, "cross")])
def test_clean_rows_show_a_card_no_more_often_than_the_level_says(trusted, conformal, monkeypatch):
    monkeypatch.setattr(module, "PERMUTATIONS", 99)
    hits = 0
    for seed in range(6):
        rows = plain(trusted + 60, 1000 + seed)
        judge = Judge(conformal=conformal).fit(rows.take(np.arange(trusted)))
        hits += bool(find_cards(judge, rows.take(np.arange(trusted, trusted + 60)), 0.2).cards)
    assert hits <= 4  # of six, more has a probability of .2 %


def test_two_kinds_in_a_pile_are_two_cards(judge):
    clean = plain(250, 6, "c")
    sure = plain(60, 7, "a", features=9.0, survival=3.0)
    shifted = unsure(plain(50, 8, "b", features=-9.0, survival=-1.0, axis=4))
    pile = Rows.concatenate([clean, sure, shifted])
    found = find_cards(judge, pile)
    kinds = np.repeat([0, 1, 2], [250, 60, 50])
    assert adjusted_rand_score(kinds[250:], found.of[250:]) > 0.8
    assert (found.of[:250] > 0).mean() < 0.15
    readings = {kinds[card.members[0]]: card.reading for card in found.cards if kinds[card.members[0]]}
    assert readings == {1: "attack-like", 2: "shift-like"}
    first = next(card for card in found.cards if kinds[card.members[0]] == 1)
    assert set(list(first.parts)[:2]) == {"features", "survival"}
    assert first.survival is not None
    assert first.survival > 0.9
    assert first.p_value <= found.level
    assert first.share == pytest.approx(len(first.members) / 360)


def test_a_kind_of_other_gradients_names_the_layer_that_carries_it(judge):
    odd = plain(60, 9, "o")
    moved = dict(odd.functional)
    moved["block.fc"] = (odd.functional["block.fc"] + 6 * np.eye(16, dtype=np.float32)[14]).astype(np.float32)
    found = find_cards(judge, Rows.concatenate([plain(250, 10, "c"), replace(odd, functional=moved)]))
    card = found.cards[int(np.argmax([(card.members >= 250).sum() for card in found.cards]))]
    assert card.layers[0] == "block.fc"
    assert next(iter(card.parts)) == "functional"


def test_the_order_of_a_pile_changes_no_card(judge):
    pile = Rows.concatenate([plain(150, 11, "c"), plain(50, 12, "o", features=9.0)])
    order = RNG(13).permutation(200)
    one, other = find_cards(judge, pile), find_cards(judge, pile.take(order))
    assert [len(card.members) for card in one.cards] == [len(card.members) for card in other.cards]
    assert (one.of[order] == other.of).all()


def test_members_go_to_the_nearest_middle_and_others_stay_nobody_s():
    points = np.array([[0.0, 0.1], [0.2, 0.0], [0.1, 0.0], [9.0, 9.0], [9.1, 9.2], [0.3, 0.1], [5.0, 5.0]])
    owner = np.array([0, 0, 0, 1, 1, 1, -1])
    assert nearest_middle(points, owner).tolist() == [0, 0, 0, 1, 1, 0, -1]


def test_a_rank_counts_ties_half():
    assert mean_rank(np.array([1.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx((0.25 + 1.0) / 2)


def test_what_a_pile_must_hold_of_a_kind_is_told():
    assert Cards([], 100, 150).least_share == pytest.approx(1 - 0.05 ** (1 / 150))
    assert Card(1, np.arange(3), 0.1, 0.01, {}, [], None, None).reading == "neither clearly"


def test_a_score_without_parts_has_no_cards():
    with pytest.raises(CovaryError, match="combined"):
        find_cards(Judge("class-max").fit(plain(200, 14)), plain(30, 15))
