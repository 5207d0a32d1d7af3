"""What kind of oddness an input shows: another mechanism behind a sure answer, overconfidence, or being unsure.

The second axis beside the score. Unsure inputs are odd in many ways while nothing else is behind their answer; here an
input is held against trusted inputs that the network is as sure of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from covary.scoring.calibration.conformal import cross_conformal_p
from covary.scoring.scores.among_like import OddAmongLike
from covary.scoring.scores.combined import Measured
from covary.scoring.scores.joined import joined

Values = Float[np.ndarray, " n"]

MECHANISM = "another mechanism behind a sure answer"
OVERCONFIDENT = "overconfident"
UNSURE = "unsure or shifted"
COPY = "copy of a trusted input"
# What an input may be, in the order in which ties are broken.
KINDS = (MECHANISM, OVERCONFIDENT, UNSURE)
# An answer is sure where at least this share of calibration samples is no surer.
SURE = 0.2


class Kinds:
    """Names the kind of each input, and how far that can be trusted.

    Three conformal p-values among calibration samples: of the evidence at equal confidence (every part but confidence,
    each held against fit samples of like margin, joined by the cubic norm), of a high margin, and of a low one. The
    smallest names the kind; another mechanism only behind a sure answer. Told with it is p = min(1, 3 p_smallest): a
    clean input gets p <= a with a chance of a at most, whichever of the three it is.

    Margins are standardised per predicted class.
    """

    def fit(self, scores: Sequence[object], calibration: Sequence[Measured]) -> Kinds | None:
        """Learns from the fit samples of every split; ranks among its calibration samples. None without margins."""
        self.likes_: list[dict[str, OddAmongLike]] = []
        for score in scores:
            if getattr(score, "margin_column_", None) is None:
                return None
            margins, parts = score.fit_margins_, score.fit_parts()  # pyright: ignore[reportAttributeAccessIssue]
            self.likes_.append({kind: OddAmongLike().fit(values, margins) for kind, values in parts.items()})
        self.columns_ = [score.margin_column_ for score in scores]  # pyright: ignore[reportAttributeAccessIssue]
        both = [self._axes(k, measured) for k, measured in enumerate(calibration)]
        self.folds_ = np.repeat(np.arange(len(both)), [len(margin) for _, margin in both])
        self.odd_, self.margin_ = (np.concatenate([one[i] for one in both]) for i in (0, 1))
        return self

    def __call__(
        self, measured: Sequence[Measured], copies: Bool[np.ndarray, " n"]
    ) -> tuple[list[str], Values]:
        """The kind of every input, and its p-value; of copies 1, since they are as trusted inputs are."""
        every = [self._axes(k, own) for k, own in enumerate(measured)]
        odd, margin = (np.stack([one[i] for one in every]) for i in (0, 1))
        mechanism, over, unsure = (
            cross_conformal_p(values, known, self.folds_)
            for values, known in ((odd, self.odd_), (margin, self.margin_), (-margin, -self.margin_))
        )
        three = np.stack([np.where(unsure > SURE, mechanism, 1.0), over, unsure])
        chosen: Int[np.ndarray, " n"] = three.argmin(0)
        p = np.where(copies, 1.0, np.minimum(1.0, len(three) * three.min(0)))
        return [COPY if is_copy else KINDS[i] for i, is_copy in zip(chosen.tolist(), copies.tolist(), strict=True)], p

    def _axes(self, k: int, measured: Measured) -> tuple[Values, Values]:
        """Evidence at equal confidence by split k, in nats, and the standardised margin."""
        margin = measured.residuals["confidence"][:, self.columns_[k]]
        pieces = [like(measured.parts[kind], margin) for kind, like in self.likes_[k].items()]
        return joined(pieces), margin
