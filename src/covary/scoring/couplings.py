"""Couplings: how strongly the network's behaviour on a query moves together with that on a reference sample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from covary.errors import CovaryError, unknown_name
from covary.scoring.rows import SIGMA, Rows

Vectors = Float[np.ndarray, "_ d"]
Means = Float[np.ndarray, " _"]
Coupling = Float[np.ndarray, "q r"]

EPSILON = 1e-8


def vectors(rows: Rows) -> Float[np.ndarray, "n d"]:
    """One vector per sample: all layers' compressed rows side by side, float64.

    Raises:
        CovaryError: rows of a forward pass alone, which hold no gradients.
    """
    if not rows.functional:
        raise CovaryError("couplings of rows without gradients", "evidence fast or thorough", "fit again with one")
    return np.concatenate([np.asarray(part, np.float64) for part in rows.functional.values()], axis=1)


def covariance(x: Vectors, z: Vectors, mean_x: Means, mean_z: Means, sigma: float = SIGMA) -> Coupling:
    """K_ij = g_i^T g_j: to first order the covariance of two observables under w ~ N(w*, I). Unbounded.

    Of traces it is their covariance. A common scale, sigma, changes no ranking and is left out.
    """
    return x @ z.T


def cosine(x: Vectors, z: Vectors, mean_x: Means, mean_z: Means, sigma: float = SIGMA) -> Coupling:
    """K_ij = g_i^T g_j / (|g_i| |g_j|), in [-1, 1]: the small-step limit of Pearson's correlation of traces.

    1e-8 is added to each norm as the published estimator adds it to each standard deviation; sigma cancels.
    """
    norm_x = np.linalg.norm(x, axis=1) + EPSILON
    norm_z = np.linalg.norm(z, axis=1) + EPSILON
    return (x @ z.T) / norm_x[:, None] / norm_z[None, :]


def ccc(x: Vectors, z: Vectors, mean_x: Means, mean_z: Means, sigma: float = SIGMA) -> Coupling:
    """Lin's concordance, 2 cov / (var_x + var_z + (mean_x - mean_z)^2 + 1e-8), in [-1, 1] (Lin 1989).

    From gradients: cov = sigma^2 g_i^T g_j, variances sigma^2 |g|^2, means f(x; w*), and the ranking depends on sigma.
    Rows of traces already carry their scale: sigma = 1 (`Rows.sigma` says which).
    """
    variance_x = sigma**2 * np.square(x).sum(1)
    variance_z = sigma**2 * np.square(z).sum(1)
    gap = np.square(mean_x[:, None] - mean_z[None, :])
    return 2 * sigma**2 * (x @ z.T) / (variance_x[:, None] + variance_z[None, :] + gap + EPSILON)


COUPLINGS: dict[str, Callable[..., Coupling]] = {
    "covariance": covariance,
    "cosine": cosine,
    "ccc": ccc,
}


def couple(name: str, queries: Rows, reference: Rows) -> Coupling:
    """Coupling matrix, query x reference, by the coupling of that name.

    Raises:
        CovaryError: an unknown coupling, or gradients on one side and traces on the other.
    """
    if name not in COUPLINGS:
        raise unknown_name("coupling", name, COUPLINGS)
    if queries.sigma != reference.sigma:
        found = f"queries with rows of scale {queries.sigma:g} against a reference of scale {reference.sigma:g}"
        raise CovaryError(found, "rows of one estimator on both sides")
    means = queries.observable, reference.observable
    return COUPLINGS[name](vectors(queries), vectors(reference), *means, sigma=reference.sigma)
