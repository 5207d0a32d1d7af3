"""Slow, obvious transcriptions of the method, one sample and one layer at a time; oracles of several test files."""

from __future__ import annotations

import math

import numpy as np

from covary.scoring.rows import Rows

LAMBDA = 0.1


def share_unaccounted(x: np.ndarray, reference: list[np.ndarray]) -> float:
    """1 - s^T (G + lambda I)^-1 s, with s and G the cosines of x with the reference and of the reference itself."""
    if np.linalg.norm(x) == 0:
        return 1.0
    r = len(reference)
    s, gram = np.zeros(r), np.zeros((r, r))
    for i in range(r):
        s[i] = _cosine(x, reference[i])
        for j in range(r):
            gram[i, j] = _cosine(reference[i], reference[j])
    return float(1 - s @ np.linalg.solve(gram + LAMBDA * np.eye(r), s))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / lengths if lengths else 0.0


def profile(
    reference: dict[str, np.ndarray],
    reference_classes: np.ndarray,
    queries: dict[str, np.ndarray],
    query_classes: np.ndarray,
    norms: np.ndarray | None,
    centred: bool,
) -> np.ndarray:
    """(n of every layer, v of every layer, o of every layer) of every query."""
    table = []
    for i, label in enumerate(query_classes):
        n, v, o = [], [], []
        for position, layer in enumerate(reference):
            rows = reference[layer].astype(np.float64)
            centre = rows.mean(0) if centred else 0.0
            x = queries[layer][i].astype(np.float64) - centre
            everyone = [row - centre for row in rows]
            own = [row for row, c in zip(everyone, reference_classes, strict=True) if c == label]
            n.append(math.log(np.linalg.norm(x) if norms is None else norms[i, position]))
            v.append(math.log(share_unaccounted(x, everyone)))
            o.append(math.log(share_unaccounted(x, own)) if own else v[-1])
        table.append(n + v + o)
    return np.array(table)


def ledoit_wolf(x: np.ndarray) -> np.ndarray:
    """Shrunk covariance of rows whose mean is known to be zero (Ledoit and Wolf 2004, section 3)."""
    n, p = x.shape
    sample = sum(np.outer(row, row) for row in x) / n
    mu = np.trace(sample) / p
    d2 = np.square(sample - mu * np.eye(p)).sum() / p
    b2 = min(sum(np.square(np.outer(row, row) - sample).sum() for row in x) / p / n**2, d2)
    rho = b2 / d2 if d2 else 0.0
    return rho * mu * np.eye(p) + (1 - rho) * sample


class Standardised:
    """Class means pulled to the common one, spread and Ledoit-Wolf covariance of residuals, Mahalanobis distance."""

    def __init__(self, numbers: np.ndarray, classes: np.ndarray) -> None:
        self.mean = numbers.mean(0)
        self.means = {}
        for label in set(classes.tolist()):
            own = numbers[classes == label]
            w = len(own) / (len(own) + 20)
            self.means[label] = w * own.mean(0) + (1 - w) * self.mean
        residuals = np.array([row - self.means[c] for row, c in zip(numbers, classes.tolist(), strict=True)])
        self.spread = np.sqrt((residuals**2).mean(0))
        self.covariance = ledoit_wolf(residuals / self.spread)

    def residual(self, row: np.ndarray, label: int) -> np.ndarray:
        return (row - self.means.get(label, self.mean)) / self.spread

    def distance(self, row: np.ndarray, label: int) -> float:
        r = self.residual(row, label)
        return math.sqrt(r @ np.linalg.solve(self.covariance, r))


def held_out(numbers: np.ndarray, classes: np.ndarray, folds: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Residual and distance of every fit sample by a standardiser fitted on the four folds that it is not in."""
    residuals, distances = np.zeros_like(numbers), np.zeros(len(numbers))
    for i in range(len(numbers)):
        others = np.array([j % folds != i % folds for j in range(len(numbers))])
        standardised = Standardised(numbers[others], classes[others])
        residuals[i] = standardised.residual(numbers[i], int(classes[i]))
        distances[i] = standardised.distance(numbers[i], int(classes[i]))
    return residuals, distances


def functional_profile(reference: Rows, rows: Rows) -> np.ndarray:
    """The profile on gradients: cosines of the compressed rows, exact norms."""
    layers, queries = dict(reference.functional), dict(rows.functional)
    return profile(layers, reference.predicted, queries, rows.predicted, rows.functional_norms, centred=False)


def latent_profile(reference: Rows, rows: Rows) -> np.ndarray:
    """The profile on pooled activations, centred on the reference mean."""
    return profile(dict(reference.latent), reference.predicted, dict(rows.latent), rows.predicted, None, True)
