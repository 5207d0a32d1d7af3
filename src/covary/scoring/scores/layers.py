"""The layer profile: per layer, a direction's strength and how much of it no trusted sample accounts for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import solve_triangular

from covary.scoring.rows import Rows

Layers = Mapping[str, Float[np.ndarray, "n _"]]
Classes = Int[np.ndarray, " n"]

LAMBDA = 0.1
LEAST_NORM = 1e-12
# Rows taken through the profile together.
AT_ONCE = 1024


def unit(rows: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Rows scaled to length one; a row of zeros stays zero, hence wholly unexplained."""
    rows = np.asarray(rows, np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > LEAST_NORM)


def log_share(
    units: Float[np.ndarray, "*layers n k"], form: Float[np.ndarray, "*layers m k"], dual: bool
) -> Float[np.ndarray, "*layers n"]:
    """log u of unit rows under quadratic forms, one layer or several of the same width at once."""
    along = units @ np.swapaxes(form, -1, -2)
    squares = np.einsum("...nm,...nm->...n", along, along)
    if dual:
        # For unit rows 1 - squares >= lam / (lam + r), far above rounding.
        squares = 1.0 - squares
    return np.log(np.where(squares > 0, np.minimum(squares, 1.0), 1.0))


class Unaccounted:
    """The share of a unit direction that reference directions do not account for, as one small quadratic form.

    u(x) = 1 - s^T (G + lam I)^-1 s = lam x^T (Z^T Z + lam I)^-1 x for unit x, unit reference rows Z, s = Z x and
    G = Z Z^T: the posterior variance at x of a Gaussian process whose kernel is the cosine, seen at the reference
    samples with noise lam. In [lam / (lam + r), 1]; 1 = nothing is accounted for.
    """

    def __init__(self, reference: Float[np.ndarray, "r k"], lam: float = LAMBDA) -> None:
        r, k = reference.shape
        # The side with fewer dimensions: r numbers a class instead of k where a class has few samples.
        self.dual = r < k
        if self.dual:
            factor = np.linalg.cholesky(reference @ reference.T + lam * np.eye(r))
            self.form = solve_triangular(factor, reference, lower=True)
        else:
            factor = np.linalg.cholesky(reference.T @ reference / lam + np.eye(k))
            self.form = solve_triangular(factor, np.eye(k), lower=True)

    def log(self, units: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
        """log u in nats, <= 0; a row of zeros has no direction, so nothing about it is accounted for: 0."""
        return log_share(units, self.form, self.dual)


# (forms (layers, m, k), whether they are dual)
Stacked = tuple[Float[np.ndarray, "layers m k"], bool]


def stacked(forms: list[Unaccounted]) -> Stacked:
    """Forms of layers of one width and one reference as one array, which the forms go on to share."""
    full = np.stack([form.form for form in forms])
    for form, own in zip(forms, full, strict=True):
        form.form = own
    return full, forms[0].dual


class LayerProfile:
    """Three numbers per layer: n = log norm, v = log share unexplained, o = the same by the predicted class alone.

    A predicted class absent from the reference has o = v. Numbers are ordered (n of all layers, v of all, o of all).

    Args:
        centred: take the reference mean off first (activations have one; gradients are taken as they are).
    """

    def __init__(self, centred: bool = False, lam: float = LAMBDA) -> None:
        self.centred, self.lam = centred, lam

    def fit(self, layers: Layers, classes: Classes) -> LayerProfile:
        """One small quadratic form per layer, and one per layer and class, from the reference rows."""
        self.names_ = list(layers)
        self.centre_ = {
            name: np.asarray(rows, np.float64).mean(0) if self.centred else np.zeros(rows.shape[1])
            for name, rows in layers.items()
        }
        self.all_: dict[str, Unaccounted] = {}
        self.own_: dict[str, dict[int, Unaccounted]] = {}
        for name, rows in layers.items():
            units = unit(rows - self.centre_[name])
            self.all_[name] = Unaccounted(units, self.lam)
            self.own_[name] = {
                int(label): Unaccounted(units[classes == label], self.lam) for label in np.unique(classes)
            }
        self._stack([int(label) for label in np.unique(classes)])
        return self

    def _stack(self, labels: list[int]) -> None:
        """Forms of equally wide layers side by side: a few large products cost a small batch far less than many."""
        widths: dict[int, list[int]] = {}
        for position, name in enumerate(self.names_):
            widths.setdefault(len(self.centre_[name]), []).append(position)
        self._stacks: list[tuple[list[int], Stacked, dict[int, Stacked]]] = []
        for positions in widths.values():
            names = [self.names_[position] for position in positions]
            own = {label: stacked([self.own_[name][label] for name in names]) for label in labels}
            self._stacks.append((positions, stacked([self.all_[name] for name in names]), own))

    def numbers(
        self, layers: Layers, classes: Classes, norms: Float[np.ndarray, "n L"] | None = None
    ) -> Float[np.ndarray, "n threeL"]:
        """(n, v, o) of every layer; `norms` are the exact ones where the rows are compressed."""
        n, depth = len(classes), len(self.names_)
        found = np.empty((3, n, depth))
        for start in range(0, n, AT_ONCE):
            some = slice(start, min(start + AT_ONCE, n))
            own_classes = classes[some]
            members = {int(label): np.flatnonzero(own_classes == label) for label in np.unique(own_classes)}
            for positions, full, own in self._stacks:
                names = [self.names_[position] for position in positions]
                centred = np.stack([np.asarray(layers[name][some], np.float64) - self.centre_[name] for name in names])
                lengths = np.linalg.norm(centred, axis=2)
                units = np.divide(
                    centred, lengths[..., None], out=np.zeros_like(centred), where=lengths[..., None] > LEAST_NORM
                )
                v = log_share(units, *full)
                o = v.copy()
                for label, index in members.items():
                    if label in own:
                        o[:, index] = log_share(units[:, index], *own[label])
                sizes = lengths if norms is None else np.asarray(norms[some][:, positions], np.float64).T
                for kind, values in enumerate((np.log(np.maximum(sizes, LEAST_NORM)), v, o)):
                    found[kind, some, positions] = values
        return np.concatenate(list(found), axis=1)


def functional_numbers(profile: LayerProfile, rows: Rows) -> Float[np.ndarray, "n threeL"]:
    """The profile's numbers on gradients; norms are the exact ones, cosines those of the compressed rows."""
    return profile.numbers(rows.functional, rows.predicted, rows.functional_norms)


def latent_numbers(profile: LayerProfile, rows: Rows) -> Float[np.ndarray, "n threeL"]:
    """The profile's numbers on pooled activations."""
    return profile.numbers(rows.latent, rows.predicted)


def per_layer_deviation(residuals: Float[np.ndarray, "n threeL"]) -> Float[np.ndarray, "n L"]:
    """One number per layer: root mean square of its three standardised numbers; about 1 on trusted samples."""
    n, d = residuals.shape
    return np.sqrt(np.square(residuals.reshape(n, 3, d // 3)).mean(1))
