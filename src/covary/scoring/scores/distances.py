"""Distances of a sample's numbers from trusted ones, as standardised logarithms: of all numbers, and by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from covary.scoring.scores.standardise import LEAST_SPREAD, ClassStandardiser, held_out, spread_folds

Numbers = Float[np.ndarray, "n d"]
Classes = Int[np.ndarray, " n"]
Distances = Float[np.ndarray, " n"]

LEAST_DISTANCE = 1e-12
TOP_LAYERS = 5


class Standardised:
    """Shifts and scales values so that held-out trusted samples have mean 0 and standard deviation 1."""

    def fit(self, values: Distances) -> Standardised:
        """Learns shift and scale; keeps the trusted samples' own values in `fit_`."""
        self.centre_, self.scale_ = float(values.mean()), max(float(values.std()), 1e-6)
        self.fit_ = self(values)
        return self

    def __call__(self, values: Distances) -> Distances:
        """Standardised values."""
        return (values - self.centre_) / self.scale_


class FullDistance:
    """Standardised log of the Mahalanobis distance over all numbers; about 0 and spread 1 on trusted samples."""

    def fit(self, numbers: Numbers, classes: Classes) -> FullDistance:
        """Fits on all trusted samples, standardises on distances of held-out ones (5 folds)."""
        self.standardiser_ = ClassStandardiser().fit(numbers, classes)
        self.residuals_, distances = held_out(numbers, classes, spread_folds(len(numbers)))
        self.standardised_ = Standardised().fit(_log(distances))
        self.fit_ = self.standardised_.fit_
        return self

    def __call__(self, numbers: Numbers, classes: Classes) -> Distances:
        """Higher = further from the trusted samples."""
        return self.standardised_(_log(self.standardiser_.distance(numbers, classes)))


class TopLayersDistance:
    """Sum of the five largest of the layers' own standardised log distances, standardised again.

    A deep network has a hundred numbers of which a few tell; over all of them those drown, layer by layer they don't.
    Numbers are ordered by kind, then layer, as the layer profile gives them.
    """

    def __init__(self, kinds: int = 3) -> None:
        self.kinds = kinds

    def fit(self, numbers: Numbers, classes: Classes) -> TopLayersDistance:
        """One `FullDistance` per layer on that layer's numbers alone."""
        layers = numbers.shape[1] // self.kinds
        self.columns_ = [np.arange(layer, numbers.shape[1], layers) for layer in range(layers)]
        self.layers_ = [FullDistance().fit(numbers[:, columns], classes) for columns in self.columns_]
        self.standardised_ = Standardised().fit(_top(np.stack([layer.fit_ for layer in self.layers_], axis=1)))
        self.fit_ = self.standardised_.fit_
        return self

    def __call__(self, numbers: Numbers, classes: Classes) -> Distances:
        """Higher = some layers further from the trusted samples."""
        pairs = zip(self.layers_, self.columns_, strict=True)
        every = [layer(numbers[:, columns], classes) for layer, columns in pairs]
        return self.standardised_(_top(np.stack(every, axis=1)))


class LayersDistance:
    """The standardised log Mahalanobis distance of each layer's own vector; their sum is the distance of all.

    Lee et al. 2018 (arXiv 1807.03888, section 2.2) on any vectors by layer; they weigh layers by known anomalies, here
    all weigh the same. A layer that never varies among trusted samples is left out: no distance is to be had there.

    Args:
        widths: how many numbers each layer has, in the order of the numbers.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.columns_ = np.split(np.arange(sum(widths)), np.cumsum(widths)[:-1])

    def fit(self, numbers: Numbers, classes: Classes) -> LayersDistance:
        """One `FullDistance` a layer; `fit_` are the trusted samples' own, (n, L)."""
        self.columns_ = [own for own in self.columns_ if numbers[:, own].std(0).max() > LEAST_SPREAD]
        self.layers_ = [FullDistance().fit(numbers[:, own], classes) for own in self.columns_]
        self.fit_ = self._stacked([layer.fit_ for layer in self.layers_], len(numbers))
        return self

    def __call__(self, numbers: Numbers, classes: Classes) -> Float[np.ndarray, "n L"]:
        """Every layer's standardised log distance; higher = further from the trusted samples."""
        pairs = zip(self.layers_, self.columns_, strict=True)
        return self._stacked([layer(numbers[:, own], classes) for layer, own in pairs], len(numbers))

    def _stacked(self, every: list[Distances], n: int) -> Float[np.ndarray, "n L"]:
        return np.stack(every, axis=1) if every else np.zeros((n, 1))


def _log(distances: Distances) -> Distances:
    return np.log(np.maximum(distances, LEAST_DISTANCE))


def _top(by_layer: Float[np.ndarray, "n L"]) -> Distances:
    k = min(TOP_LAYERS, by_layer.shape[1])
    return np.partition(by_layer, by_layer.shape[1] - k, axis=1)[:, -k:].sum(1)
