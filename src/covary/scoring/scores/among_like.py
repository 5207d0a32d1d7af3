"""Evidence of one part at equal confidence: how odd an input is among trusted ones that the network is as sure of."""

from __future__ import annotations

from covary.scoring.conditional.confidence import AtEqualConfidence, Values
from covary.scoring.scores.tails import Tail


class OddAmongLike:
    """-log p, in nats, of a statistic at equal confidence among fit samples, each held against the others.

    Higher = odder than trusted inputs that the network is as sure of.
    """

    def fit(self, values: Values, margins: Values) -> OddAmongLike:
        """Learns from held-out values of the fit samples."""
        self.at_equal_ = AtEqualConfidence().fit(values, margins)
        self.tail_ = Tail().fit(self.at_equal_.fit_)
        return self

    def __call__(self, values: Values, margins: Values) -> Values:
        """Evidence of fresh samples."""
        return -self.tail_.log_p(self.at_equal_(values, margins))
