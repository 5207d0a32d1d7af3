"""Roles of the trusted samples: what couplings are taken with, what scores are standardised on, what calibrates."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from covary.errors import CovaryError

SHARES = {"reference": 0.35, "fit": 0.35, "calibration": 0.30}
FOLDS = 5
# Up to this many trusted samples every one calibrates, since the few of one split that hold the threshold are a matter
# of luck (`covary_bench.studies.deals_of_trusted`); beyond, one split holds it as well for a fifth of the work.
CROSS_UP_TO = 4000
# A preconditioner's own inputs and those that draws are chosen on must not calibrate: one split, if it is enough.
LEAST_SPLIT = 330
# Where something smaller is chosen and all others calibrate by turns, so many inputs are set apart for it.
APART_SHARE, MOST_APART = 0.15, 200
# As published (arXiv 2604.18970): as many inputs move the weights as are left to judge by.
SAMPLING_SHARE = 0.5
LEAST_SAMPLING = 32

# One split, every sample by turns, or whichever suits the number of trusted samples.
Conformal = Literal["auto", "split", "cross"]

Index = Int[np.ndarray, " _"]


@dataclass(frozen=True)
class Roles:
    """Disjoint positions within the trusted set, each in random order; none calibrate where another set does."""

    reference: Index
    fit: Index
    calibration: Index


def random_order(ids: Sequence[str], seed: int, purpose: str) -> Index:
    """A random order of samples that depends on their ids alone, not on the order they came in."""
    keys = [hashlib.sha256(f"{seed}\x1f{purpose}\x1f{name}".encode()).digest() for name in ids]
    return np.array(sorted(range(len(ids)), key=lambda i: keys[i]), dtype=np.int64)


def kind_for(
    n: int, conformal: Conformal, *, calibration_apart: bool = False, chosen_on_trusted: bool = False
) -> Literal["split", "cross"]:
    """How n trusted samples are to calibrate; a calibration set apart always makes one split.

    `auto` crosses up to 4,000 samples, and only below 330 where draws or a preconditioner come from some of them.
    """
    if calibration_apart:
        return "split"
    if conformal != "auto":
        return conformal
    return "cross" if n < LEAST_SPLIT or (n <= CROSS_UP_TO and not chosen_on_trusted) else "split"


def calibration_size(n: int) -> int:
    """How many of n trusted samples one split calibrates on: 30 %, to the nearest."""
    return round(SHARES["calibration"] * n)


def calibrating(n: int, conformal: Conformal, *, chosen: bool = False) -> int:
    """How many of n trusted samples calibrate; where something is `chosen` on some, those set apart do not."""
    if kind_for(n, conformal) == "split":
        return calibration_size(n)
    return n - apart_size(n) if chosen else n


def split(ids: Sequence[str], classes: Index, seed: int, *, calibration_apart: bool = False) -> Roles:
    """One split: calibration by lot, the rest halved into reference and fit, stratified by class.

    By lot, since a calibration sample has to meet the reference as a fresh input does. Stratified, it would always find
    siblings of its class there, which a fresh input of a rare class may lack: 5.5 % alarms where 5 % were asked for.
    """
    order = random_order(ids, seed, "calibration")
    calibration = order[: 0 if calibration_apart else calibration_size(len(ids))]
    return _split_in_half(ids, classes, np.sort(order[len(calibration) :]), calibration, seed)


def across(ids: Sequence[str], classes: Index, seed: int, apart: Index | None = None) -> list[Roles]:
    """A split for each fold of cross-conformal ranking: the fold calibrates, the rest is halved (see `halves`).

    Samples set `apart` are in no fold: each split has them in its reference or fit.
    """
    ranked = np.setdiff1d(np.arange(len(ids)), () if apart is None else apart)
    folds = np.full(len(ids), -1)
    folds[ranked] = cross_folds([ids[int(i)] for i in ranked], seed)
    result = []
    for k in range(FOLDS):
        inside = np.flatnonzero(folds != k)
        result.append(_split_in_half(ids, classes, inside, np.flatnonzero(folds == k), seed, in_blocks=True))
    return result


def _split_in_half(
    ids: Sequence[str], classes: Index, inside: Index, calibration: Index, seed: int, *, in_blocks: bool = False
) -> Roles:
    names = [ids[int(i)] for i in inside]
    reference, fit = halves(names, classes[inside], seed, in_blocks=in_blocks)
    return Roles(inside[reference], inside[fit], calibration)


def set_apart(ids: Sequence[str], seed: int) -> Index:
    """Positions of the inputs that something is chosen on and that never calibrate: 15 %, at most 200, by lot.

    The rest is exchangeable with fresh inputs whatever the choice, so that cross-conformal ranking over it holds as it
    does without any. They are the last that `split` would let calibrate.
    """
    n = apart_size(len(ids))
    return np.sort(random_order(ids, seed, "calibration")[len(ids) - n :])


def apart_size(n: int) -> int:
    """How many of n trusted inputs are set apart."""
    return min(round(APART_SHARE * n), MOST_APART)


def recorded(ids: Sequence[str], roles: Mapping[str, Sequence[str]], *, calibration_apart: bool = False) -> list[Roles]:
    """The splits behind the roles of a fitted judge (`Judge.roles`), however they were dealt out then.

    Raises:
        CovaryError: a role names an input that is not a trusted one.
    """
    place = {name: i for i, name in enumerate(ids)}

    def at(role: str) -> Index:
        names = () if calibration_apart and role == "calibration" else roles.get(role, ())
        if unknown := [name for name in names if name not in place]:
            found = f"{unknown[0]!r} has the role {role} and no rows"
            raise CovaryError(found, "rows of every trusted input", "fit again")
        return np.array([place[name] for name in names], dtype=np.int64)

    suffixes = [""] if "reference" in roles else [f" {k}" for k in range(FOLDS)]
    return [Roles(at(f"reference{k}"), at(f"fit{k}"), at(f"calibration{k}")) for k in suffixes]


def cross_folds(ids: Sequence[str], seed: int, folds: int = FOLDS) -> Index:
    """Fold of every trusted sample for cross-conformal ranking: sizes differ by one at most, members by lot."""
    result = np.empty(len(ids), dtype=np.int64)
    result[random_order(ids, seed, "folds")] = np.arange(len(ids)) % folds
    return result


def halves(ids: Sequence[str], classes: Index, seed: int, *, in_blocks: bool = False) -> tuple[Index, Index]:
    """Positions of two halves, stratified by class.

    Stratified where both get at least two of a class; samples of thinner classes are dealt out together. Of a class in
    random order every other sample goes to the same half, or with `in_blocks` the first ones do. Then hardly any sample
    changes sides where others are left out, so the folds of cross-conformal ranking agree on most of both: scores of
    folds that disagree average to p-values far above those asked for.
    """
    order = random_order(ids, seed, "roles")
    labels, place, counts = np.unique(classes[order], return_inverse=True, return_counts=True)
    thin = counts < 4
    group = np.where(thin, -1, np.arange(len(labels)))[place]
    half = np.empty(len(order), dtype=np.int64)
    for g in np.unique(group):
        own = np.flatnonzero(group == g)
        # The odd one goes to the first half in every other class.
        first = (len(own) + g % 2) // 2
        half[own] = np.arange(len(own)) >= first if in_blocks else np.arange(len(own)) % 2
    return order[half == 0], order[half == 1]


def sampling_split(ids: Sequence[str], labels: Index | None, seed: int) -> tuple[Index, Index]:
    """Positions of the inputs that move the weights, and of those that are left for all other roles.

    Half of the inputs whose class is known (a label of -1 says nobody knows), by lot as calibration is. Disjoint from
    reference, fit and calibration, since a chain's loss would tie it to its own sampling inputs.

    Raises:
        CovaryError: no labels, or fewer than 32 inputs to sample with.
    """
    own_set = "give labelled inputs apart (sampling=), or use estimator=gaussian, which needs none"
    if labels is None:
        raise CovaryError("the trusted inputs have no labels", "the true class of each, for chains to descend", own_set)
    known = np.flatnonzero(labels >= 0)
    drawn = random_order([ids[i] for i in known.tolist()], seed, "sampling")[: math.ceil(SAMPLING_SHARE * len(known))]
    if len(drawn) < LEAST_SAMPLING:
        found = f"half of the trusted inputs with known classes are {len(drawn)}"
        raise CovaryError(found, f"at least {LEAST_SAMPLING} to sample with", f"trust more inputs, {own_set}")
    sampling = np.sort(known[drawn])
    return sampling, np.setdiff1d(np.arange(len(ids)), sampling)


def not_calibrating(
    ids: Sequence[str], classes: Index, seed: int, calibration_apart: bool, conformal: Conformal = "auto"
) -> Index:
    """Positions that settings may be chosen on: those `split` deals to reference and fit.

    Every one where calibration data come apart, or where all take part in cross-conformal ranking.
    """
    if calibration_apart or kind_for(len(ids), conformal, chosen_on_trusted=True) == "cross":
        return np.arange(len(ids))
    return chosen_on(ids, classes, seed, "split")


def chosen_on(ids: Sequence[str], classes: Index, seed: int, kind: Literal["split", "cross"]) -> Index:
    """Positions that something is chosen on where some are set apart: reference and fit of one split, else those."""
    if kind == "cross":
        return set_apart(ids, seed)
    roles = split(ids, classes, seed)
    return np.sort(np.concatenate([roles.reference, roles.fit]))


def never_calibrating(ids: Sequence[str], roles: Mapping[str, Sequence[str]]) -> Index:
    """Positions of the inputs without a calibration role in a fit before; of all where every one has calibrated."""
    held = {name for role, names in roles.items() if role.split()[0] == "calibration" for name in names}
    free = np.array([i for i, name in enumerate(ids) if name not in held], dtype=np.int64)
    return free if len(free) else np.arange(len(ids))
