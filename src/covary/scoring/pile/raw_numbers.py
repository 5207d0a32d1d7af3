"""Numbers of a pile's inputs that no evidence part standardises: survival, last features, a language model's states."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from covary.scoring.conditional.lengths import AtEqualLengths
from covary.scoring.rows import Rows
from covary.scoring.scores.standardise import ClassStandardiser, held_out_residuals, spread_folds

Numbers = Float[np.ndarray, "n d"]

# Share of a language model's depth at which its states are looked at: what a text is about stands there more plainly
# than what comes next. Tried on tuning cells: a third and the whole of it, and either position alone, are no better.
DEPTH = 2 / 3


def states(rows: Rows) -> Numbers | None:
    """Hidden states at two thirds of the depth, over what is judged and at its anchor; None where there are none."""
    names = [name for name in rows.latent if name.endswith((" @ answer", " @ prompt"))]
    if not names:
        return None
    chosen = names[round(DEPTH * (len(names) - 1))]
    anchor = f"{chosen.rpartition(' @ ')[0]} @ anchor"
    return np.concatenate([rows.latent[name] for name in (chosen, anchor) if name in rows.latent], axis=1)


# kind -> its numbers, (n, d); None where rows have none.
RAW: dict[str, Callable[[Rows], Float[np.ndarray, "n _"] | None]] = {
    "survival": lambda rows: rows.survival,
    "features": lambda rows: rows.features,
    "states": states,
    "prompt states": lambda rows: None if rows.prompt is None else states(rows.prompt),
}


class RawNumbers:
    """One kind of `RAW`, standardised per class, and of texts at equal length (see `AtEqualLengths`)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def fit(self, rows: Rows) -> RawNumbers:
        """Learns from samples that do not calibrate; `held_` are their own numbers, each by the other folds."""
        numbers = self._of(rows)
        self.equal_ = None if rows.lengths is None else AtEqualLengths().fit(numbers, rows.lengths)
        if self.equal_ is not None:
            numbers = self.equal_.fit_
        self.standardiser_ = ClassStandardiser().fit_moments(numbers, rows.predicted)
        self.held_ = held_out_residuals(numbers, rows.predicted, spread_folds(len(rows)))
        return self

    def __call__(self, rows: Rows) -> Numbers:
        """Numbers in standard deviations, (n, d)."""
        numbers = self._of(rows)
        if self.equal_ is not None and rows.lengths is not None:
            numbers = self.equal_(numbers, rows.lengths)
        return self.standardiser_.residuals(numbers, rows.predicted)

    def _of(self, rows: Rows) -> Numbers:
        found = RAW[self.kind](rows)
        assert found is not None
        return np.asarray(found, np.float64)
