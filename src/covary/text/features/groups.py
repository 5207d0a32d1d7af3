"""What takes the place of the predicted class where a model writes text: nothing, a task's label, or a like prompt.

The profile's own-class numbers ask how much of an answer trusted samples *of its class* account for. An answer has no
class; its group can stand in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from covary.errors import CovaryError
from covary.scoring.rows import Rows
from covary.scoring.scores.layers import unit

Groups = Int[np.ndarray, " n"]
# Trusted texts a group of like prompts has on average, and the most groups there are.
PER_GROUP, MOST_GROUPS = 50, 10
ROUNDS, STARTS = 25, 5


def _none(rows: Rows, labels: Groups | None, seed: int) -> Callable[[Rows, Groups | None], Groups]:
    return lambda rows, labels: np.zeros(len(rows), np.int64)


def _label(rows: Rows, labels: Groups | None, seed: int) -> Callable[[Rows, Groups | None], Groups]:
    if labels is None:
        raise CovaryError("groups by label, but no trusted text has one", "`label` in every trusted text")
    return lambda rows, labels: np.full(len(rows), -1, np.int64) if labels is None else labels


def _nearest(rows: Rows, labels: Groups | None, seed: int) -> Callable[[Rows, Groups | None], Groups]:
    centres = k_means(_prompts(rows), max(1, min(MOST_GROUPS, len(rows) // PER_GROUP)), seed)
    return lambda rows, labels: np.argmax(_prompts(rows) @ centres.T, axis=1).astype(np.int64)


# name -> fitted on trusted rows, gives the group of any
GROUPINGS: dict[str, Callable[..., Callable[[Rows, Groups | None], Groups]]] = {
    "none": _none,
    "label": _label,
    "nearest": _nearest,
}


class Grouping:
    """Puts a group where the predicted class would stand.

    `none`: all texts are one group. `label`: the task's label; one that no trusted text has is a group of its own.
    `nearest`: the nearest of k directions among trusted prompts' states, found by spherical k-means. The directions
    have seen calibration prompts too, without their scores or order: with some fifty prompts a group the p-values
    move little, but the guarantee is then not exact.
    """

    def __init__(self, name: str = "none", seed: int = 0) -> None:
        if name not in GROUPINGS:
            raise CovaryError(f"unknown groups {name!r}", f"one of: {', '.join(GROUPINGS)}")
        self.name, self.seed = name, seed

    def fit(self, rows: Rows, labels: Groups | None) -> Grouping:
        """Learns the groups from trusted rows."""
        self.assign_ = GROUPINGS[self.name](rows, labels, self.seed)
        return self

    def __call__(self, rows: Rows, labels: Groups | None) -> Rows:
        """The same rows with their groups in place of `predicted`."""
        groups = self.assign_(rows, labels)
        prompt = None if rows.prompt is None else replace(rows.prompt, predicted=groups)
        return replace(rows, predicted=groups, prompt=prompt)


def k_means(units: Float[np.ndarray, "n d"], k: int, seed: int) -> Float[np.ndarray, "k d"]:
    """Directions of k clusters of unit vectors by cosine (Dhillon and Modha 2001); the best of some seeded starts."""
    rng = np.random.default_rng(seed)
    found = [_clusters(units, k, rng) for _ in range(STARTS)]
    return max(found, key=lambda centres: float((units @ centres.T).max(1).sum()))


def _clusters(units: Float[np.ndarray, "n d"], k: int, rng: np.random.Generator) -> Float[np.ndarray, "k d"]:
    # Spread-out starts: the next one is likelier the further it is from those there are.
    chosen = [int(rng.integers(len(units)))]
    while len(chosen) < k:
        gap = np.maximum(1.0 - (units @ units[chosen].T).max(1), 0.0)
        total = gap.sum()
        chosen.append(int(rng.choice(len(units), p=gap / total)) if total > 0 else int(rng.integers(len(units))))
    centres = units[chosen].copy()
    for _ in range(ROUNDS):
        own = np.argmax(units @ centres.T, axis=1)
        for j in range(k):
            if (own == j).any():
                centres[j] = units[own == j].sum(0)
        centres = unit(centres)
    return centres


def _prompts(rows: Rows) -> Float[np.ndarray, "n d"]:
    states = [np.asarray(part, np.float64) for name, part in rows.latent.items() if name.endswith("@ anchor")]
    return unit(states[-1])
