"""Roles of the trusted samples: what couplings are taken with, what scores are standardised on, what calibrates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from covary.errors import CovaryError

SHARES = {"reference": 0.35, "fit": 0.35, "calibration": 0.30}
# Below this many trusted samples one split wastes too many: 5-fold cross-conformal instead.
CROSS_CONFORMAL_BELOW = 330
FOLDS = 5
# As published (arXiv 2604.18970): as many inputs move the weights as are left to judge by.
SAMPLING_SHARE = 0.5
LEAST_SAMPLING = 32

Index = Int[np.ndarray, " _"]


def random_order(ids: Sequence[str], seed: int, purpose: str) -> Index:
    """A random order of samples that depends on their ids alone, not on the order they came in."""
    keys = [hashlib.sha256(f"{seed}\x1f{purpose}\x1f{name}".encode()).digest() for name in ids]
    return np.array(sorted(range(len(ids)), key=lambda i: keys[i]), dtype=np.int64)


def split(ids: Sequence[str], classes: Index, seed: int, shares: dict[str, float] | None = None) -> list[Index]:
    """Positions by role, in the shares given (default 35/35/30 %), stratified by class.

    Stratified where every role gets at least two of a class; samples of thinner classes are dealt out together.
    """
    wanted = np.array(list((shares or SHARES).values()))
    order = random_order(ids, seed, "roles")
    thin = {int(c) for c in np.unique(classes) if (np.bincount(_deal(int((classes == c).sum()), wanted),
            minlength=len(wanted))[wanted > 0] < 2).any()}  # fmt: skip
    groups = np.array([-1 if int(c) in thin else int(c) for c in classes[order]], dtype=np.int64)
    role = np.empty(len(order), dtype=np.int64)
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        role[own] = _deal(len(own), wanted)
    return [order[role == r] for r in range(len(wanted))]


def sampling_split(ids: Sequence[str], labels: Index | None, seed: int) -> tuple[Index, Index]:
    """Positions of the inputs that move the weights, and of those that are left for all other roles.

    Half of the inputs whose class is known (a label of -1 says nobody knows), stratified by class. Disjoint from
    reference, fit and calibration, since a chain's loss would tie it to its own sampling inputs.

    Raises:
        CovaryError: no labels, or fewer than 32 inputs to sample with.
    """
    own_set = "give labelled inputs apart (--sampling), or use --estimator gaussian, which needs none"
    if labels is None:
        raise CovaryError("the trusted inputs have no labels", "the true class of each, for chains to descend", own_set)
    known = np.flatnonzero(labels >= 0)
    shares = {"sampling": SAMPLING_SHARE, "rest": 1 - SAMPLING_SHARE}
    dealt = split([ids[i] for i in known.tolist()], labels[known], seed, shares)
    if len(dealt[0]) < LEAST_SAMPLING:
        found = f"half of the trusted inputs with known classes are {len(dealt[0])}"
        raise CovaryError(found, f"at least {LEAST_SAMPLING} to sample with", f"trust more inputs, {own_set}")
    sampling = np.sort(known[dealt[0]])
    return sampling, np.setdiff1d(np.arange(len(ids)), sampling)


def not_calibrating(ids: Sequence[str], classes: Index, seed: int, calibration_apart: bool) -> Index:
    """Positions that settings may be chosen on: those `split` deals to reference and fit.

    Every one where calibration data come apart, or where all take part in cross-conformal ranking.
    """
    if calibration_apart or len(ids) < CROSS_CONFORMAL_BELOW:
        return np.arange(len(ids))
    reference, fit, _ = split(ids, classes, seed)
    return np.sort(np.concatenate([reference, fit]))


def _deal(n: int, shares: np.ndarray) -> Index:
    """Role of each of n samples in turn, so that every prefix is as near to the shares as it can be."""
    given = np.zeros(len(shares))
    result = np.empty(n, dtype=np.int64)
    for i in range(n):
        result[i] = int(np.argmax(shares * (i + 1) - given))
        given[result[i]] += 1
    return result


def cross_folds(ids: Sequence[str], classes: Index, seed: int, folds: int = FOLDS) -> Index:
    """Fold of every trusted sample for cross-conformal ranking, classes spread evenly."""
    order = random_order(ids, seed, "folds")
    result = np.empty(len(order), dtype=np.int64)
    by_class = order[np.argsort(classes[order], kind="stable")]
    result[by_class] = np.arange(len(order)) % folds
    return result
