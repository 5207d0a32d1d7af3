"""Cards: the leading directions of a pile beyond what trusted inputs give, and who lies along each of them.

Directions are learned from calibration samples and pile together, so that both are treated alike; along each of them
a permutation test asks whether the pile reaches further than calibration samples do. A pile without anomalies shows
any card at all with probability `LEVEL` at most. Members, typical inputs and what carries a card are descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from covary.errors import CovaryError
from covary.scoring.calibration.conformal import benjamini_hochberg
from covary.scoring.judge import Judge
from covary.scoring.pile.directions import far_ends, leading
from covary.scoring.pile.second_moment import SecondMoment
from covary.scoring.pile.together import AT_ONCE, Blocks, views
from covary.scoring.rows import Rows
from covary.scoring.scores.parts import PARTS
from covary.scoring.scores.tails import Tail

Values = Float[np.ndarray, " n"]

# Chance that a pile exchangeable with calibration samples shows any card.
LEVEL = 0.05
# Directions looked at, each by both its ends.
MOST = 8
PERMUTATIONS = 1999
# Expected share of inputs among a card's members that lie there by chance.
BY_CHANCE = 0.1
# Of the mean rank of sureness and survival among trusted inputs: from here on attack-like, up to there shift-like.
ATTACK, SHIFT = 0.6, 0.4
ATTACK_LIKE, SHIFT_LIKE, NEITHER = "attack-like", "shift-like", "neither clearly"
VIEW = "pile"
LAYERS = 3
NOBODY = -1


@dataclass(frozen=True)
class Card:
    """One end of a direction of the pile and the inputs that lie there.

    Attributes:
        number: 1 is the card with the most members.
        members: positions in the pile, the most typical first.
        share: of the pile that are members, in (0, 1].
        p_value: of the direction, over all directions looked at; at most `LEVEL`.
        parts: how far members stand off trusted inputs by each kind of numbers, the furthest first: root mean square
            of mean differences in trusted standard deviations, >= 0.
        layers: in which they stand off most, the first most.
        sureness: mean share of calibration samples whose margin is smaller, in [0, 1]; None without margins.
        survival: the same of survival under amplification; None where it was not measured.
    """

    number: int
    members: Int[np.ndarray, " m"]
    share: float
    p_value: float
    parts: dict[str, float]
    layers: list[str]
    sureness: float | None
    survival: float | None

    @property
    def reading(self) -> str:
        """`attack-like` where answers are sure and survive, `shift-like` where they are unsure and fade."""
        known = [rank for rank in (self.sureness, self.survival) if rank is not None]
        lean = float(np.mean(known)) if known else 0.5
        return ATTACK_LIKE if lean >= ATTACK else SHIFT_LIKE if lean <= SHIFT else NEITHER


@dataclass(frozen=True)
class Cards:
    """All cards of a pile.

    Attributes:
        cards: by falling number of members.
        n: inputs of the pile.
        n_calibration: samples that took part in the test.
        level: chance that a pile without anomalies shows any card.
    """

    cards: list[Card]
    n: int
    n_calibration: int
    level: float = LEVEL

    @property
    def least_share(self) -> float:
        """A kind that makes up less of a pile cannot be told from bad luck: (1 - share)^n_calibration = level."""
        return float(1 - self.level ** (1 / max(self.n_calibration, 1)))

    @property
    def of(self) -> Int[np.ndarray, " n"]:
        """Number of each input's card; 0 = on none."""
        numbers = np.zeros(self.n, np.int64)
        for card in self.cards:
            numbers[card.members] = card.number
        return numbers


def find_cards(judge: Judge, rows: Rows, level: float = LEVEL, seed: int = 0) -> Cards:
    """The cards of a pile.

    The second moment of calibration samples and pile gives `MOST` leading directions. Varimax turns them towards axes
    on which few inputs lie far out, as inputs of one mechanism do. Per end of an axis the statistic is the mean of
    squared projections over the pile, less that over calibration samples; relabelling which samples calibrate gives
    its law and that of the smallest p-value of all ends (Westfall and Young 1993). All of it is symmetric in
    calibration samples and clean inputs, so the level is exact. Where calibration is cross-conformal the trusted
    inputs are split once more for that (see `one_split`).

    Members are chosen along the axis by Benjamini-Hochberg at `BY_CHANCE`, by tails that go on beyond the furthest
    calibration sample. An input of several axes is of the one along which it lies furthest out; then every member
    goes to the card whose middle it lies nearest to.

    Copies of trusted inputs are on no card: somebody trusts them.

    Args:
        judge: fitted; it need not have looked at the pile.
        rows: of the whole pile.
        level: chance that a pile without anomalies shows any card, in (0, 1).
        seed: of the lots.

    Raises:
        CovaryError: a score without parts, such as `class-max`.
    """
    rng = np.random.default_rng([seed, 24])
    kept = np.flatnonzero(~judge.copies_.find(rows).copies)
    looked = _Look(one_split(judge), rows.take(kept))
    scores = looked.project(leading(looked.moment(), MOST))
    ends, p = far_ends(scores, looked.in_pile, rng, PERMUTATIONS)
    members: dict[int, Values] = {}
    for end in np.flatnonzero(p <= level).tolist():
        log_p = Tail().fit(ends[~looked.in_pile, end]).log_p(ends[looked.in_pile, end])
        members[end] = np.where(benjamini_hochberg(np.exp(log_p), BY_CHANCE), log_p, 0.0)
    if not any((depth < 0).any() for depth in members.values()):
        return Cards([], len(rows), looked.n_calibration, level)
    depths = np.stack(list(members.values()))
    owner = np.where((depths < 0).any(0), depths.argmin(0), NOBODY)
    points = ends[looked.in_pile, : scores.shape[1]]
    owner = nearest_middle(points, owner)
    by_size = sorted(((int((owner == k).sum()), end, k) for k, end in enumerate(members)), reverse=True)
    cards = [
        looked.card(number, _typical_first(np.flatnonzero(owner == k), points), float(p[end]))
        for number, (size, end, k) in enumerate(by_size, 1)
        if size
    ]
    cards = [replace(card, members=kept[card.members], share=len(card.members) / len(rows)) for card in cards]
    return Cards(cards, len(rows), looked.n_calibration, level)


def one_split(judge: Judge) -> Judge:
    """A judge of one split of the same trusted inputs; the first fold's where they are too few to be split.

    Directions learned over several folds would not do: each fold's calibration samples have taught the others, in
    whose directions they are then too short.
    """
    if len(judge.scores_) == 1:
        return judge
    trusted = Rows.concatenate([own.calibration for own in judge.dealt_])
    right = np.isin(trusted.ids, judge.reference.ids)
    try:
        return Judge(judge.score, judge.coupling, judge.fpr, seed=judge.seed, conformal="split").fit(
            trusted, np.where(right, trusted.predicted, -1)
        )
    except CovaryError:
        return judge


class _Look:
    """Calibration samples and a pile, seen by the first split's views, which have learned from neither.

    Calibration samples stand before the pile's inputs.
    """

    def __init__(self, judge: Judge, rows: Rows) -> None:
        self.view, self.score = views(judge)[0], judge.scores_[0]
        self.rows, self.calibration = rows, judge.dealt_[0].calibration
        self.n_calibration = len(self.calibration)
        self.in_pile = np.arange(self.n_calibration + len(rows)) >= self.n_calibration

    def moment(self) -> SecondMoment:
        """Of everything."""
        return SecondMoment.sum(SecondMoment.of(whitened) for _, whitened, _ in self._pieces())

    def project(self, vectors: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "n k"]:
        """Everything along some directions."""
        found = np.empty((len(self.in_pile), vectors.shape[1]))
        for where, whitened, _ in self._pieces():
            found[where] = whitened @ vectors
        return found

    def card(self, number: int, members: Int[np.ndarray, " m"], p: float) -> Card:
        """What is told of some of the pile's inputs."""
        parts, layers = self._off(members)
        share = len(members) / max(len(self.rows), 1)
        return Card(number, members, share, p, parts, layers, self._rank("margin", members), self._survival(members))

    def _off(self, members: Int[np.ndarray, " m"]) -> tuple[dict[str, float], list[str]]:
        """How far members stand off calibration samples, by part; and the layers where they do most."""
        chosen = np.concatenate([~self.in_pile[: self.n_calibration], np.isin(np.arange(len(self.rows)), members)])
        sums: dict[bool, dict[str, np.ndarray]] = {True: {}, False: {}}
        squares: dict[str, np.ndarray] = {}
        for where, _, numbers in self._pieces(chosen):
            own = self.in_pile[where]
            for kind, block in numbers.items():
                for pile in (True, False):
                    sums[pile][kind] = sums[pile].get(kind, 0.0) + block[own == pile].sum(0)
                squares[kind] = squares.get(kind, 0.0) + np.square(block[~own]).sum(0)
        parts: dict[str, float] = {}
        by_layer: dict[str, float] = {}
        for kind, square in squares.items():
            mean = sums[False][kind] / self.n_calibration
            spread = np.sqrt(np.maximum(square / self.n_calibration - np.square(mean), 1e-12))
            off = np.square((sums[True][kind] / len(members) - mean) / spread)
            parts[kind] = float(np.sqrt(off.mean()))
            if kind in PARTS and PARTS[kind].layers is not None:
                names = self.score.parts_[kind].profile_.names_  # pyright: ignore[reportAttributeAccessIssue]
                for name, value in zip(names, off.reshape(3, -1).mean(0), strict=True):
                    by_layer[name] = max(by_layer.get(name, 0.0), float(value))
        parts = dict(sorted(parts.items(), key=lambda item: -item[1]))
        return parts, sorted(by_layer, key=lambda name: -by_layer[name])[:LAYERS]

    def _pieces(
        self, chosen: Bool[np.ndarray, " n"] | None = None
    ) -> Iterator[tuple[Int[np.ndarray, " m"], Float[np.ndarray, "m d"], Blocks]]:
        """Positions, whitened numbers and plain ones of a few samples at a time."""
        chosen = np.ones(len(self.in_pile), bool) if chosen is None else chosen
        for pile, rows, first in ((False, self.calibration, 0), (True, self.rows, self.n_calibration)):
            every = np.flatnonzero(chosen & (self.in_pile == pile))
            for start in range(0, len(every), AT_ONCE):
                where = every[start : start + AT_ONCE]
                some = rows.take(where - first)
                numbers = self.view.numbers(some, self.score.measure(some))
                yield where, self.view.whitened(VIEW, numbers), numbers

    def _rank(self, name: str, members: Int[np.ndarray, " m"]) -> float | None:
        if name not in self.rows.confidence:
            return None
        return mean_rank(self.rows.confidence[name][members], self.calibration.confidence[name])

    def _survival(self, members: Int[np.ndarray, " m"]) -> float | None:
        if self.rows.survival is None or self.calibration.survival is None:
            return None
        return mean_rank(self.rows.survival[members].mean(1), self.calibration.survival.mean(1))


def mean_rank(values: Values, among: Float[np.ndarray, " r"]) -> float:
    """Mean share of `among` below each value, ties half: 0.5 where both are alike, in [0, 1]."""
    ordered = np.sort(among)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return float(below.mean() / (2 * len(ordered)))


def nearest_middle(points: Float[np.ndarray, "n k"], owner: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Owners anew: each member goes to the group whose middle (median of its members) it lies nearest to, once.

    Kinds that share a direction are told apart by the others.
    """
    groups = np.unique(owner[owner != NOBODY])
    middles = np.stack([np.median(points[owner == group], axis=0) for group in groups])
    nearest = np.linalg.norm(points[:, None] - middles[None], axis=2).argmin(1)
    return np.where(owner == NOBODY, NOBODY, groups[nearest])


def _typical_first(members: Int[np.ndarray, " m"], points: Float[np.ndarray, "n k"]) -> Int[np.ndarray, " m"]:
    """Members by their distance from the middle of all of them."""
    own = points[members]
    return members[np.argsort(np.linalg.norm(own - np.median(own, axis=0), axis=1), kind="stable")]
