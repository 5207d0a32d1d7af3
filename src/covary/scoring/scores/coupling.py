"""Scores read off a coupling matrix; all are minus a coupling, so higher = more anomalous."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

Coupling = Float[np.ndarray, "q r"]
Labels = Int[np.ndarray, " _"]
Score = Float[np.ndarray, " q"]

TOP_K = 10


def mean(coupling: Coupling, query_classes: Labels, reference_classes: Labels) -> Score:
    """Minus the mean coupling with all reference samples (arXiv 2604.18970)."""
    return -coupling.mean(1)


def class_max(coupling: Coupling, query_classes: Labels, reference_classes: Labels) -> Score:
    """Minus the largest class mean: the mean within each reference class, then the maximum over all classes.

    Published as CLC with Pearson's correlation and as Class CCC with concordance (arXiv 2604.18970).
    """
    means = [coupling[:, reference_classes == label].mean(1) for label in np.unique(reference_classes)]
    return -np.max(means, axis=0)


def own_class(coupling: Coupling, query_classes: Labels, reference_classes: Labels) -> Score:
    """Minus the mean coupling with reference samples of the predicted class; of all where that class has none."""
    result = coupling.mean(1)
    for label in np.unique(query_classes):
        own = reference_classes == label
        if own.any():
            rows = query_classes == label
            result[rows] = coupling[np.ix_(rows, own)].mean(1)
    return -result


def top_k(coupling: Coupling, query_classes: Labels, reference_classes: Labels) -> Score:
    """Minus the mean of the 10 largest couplings (of all where there are fewer)."""
    k = min(TOP_K, coupling.shape[1])
    return -np.partition(coupling, coupling.shape[1] - k, axis=1)[:, -k:].mean(1)
