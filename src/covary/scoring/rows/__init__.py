"""The narrow waist: rows, one per sample. Left of it a network is needed, right of it nothing but rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from covary.scoring.rows import memmap

# Standard deviation of a weight under which CCC takes the moments of gradients; its ranking depends on it.
SIGMA = 0.01


@dataclass(frozen=True)
class Rows:
    """What is kept of n samples; every score, calibration and explanation is a function of this alone.

    Attributes:
        ids: names of the samples, in order.
        predicted: the network's own prediction at w*, (n,); all zeros where the network has no classes.
        observable: f(x_i; w*), (n,).
        functional: per layer, the compressed gradient of the observable (or centred traces), (n, k_l), float32.
        functional_norms: exact gradient norm of every layer, (n, L), in the order of `functional`.
        latent: per layer, the pooled activation, (n, k_l), float32; not centred.
        confidence: named one-number evidence such as `margin` and `energy`, each (n,).
        features: what the last linear layer takes, pooled and compressed, (n, k), float32; None where there is none.
        survival: log-odds of the own answer while the last layers are amplified, one column a depth, (n, depths), in
            nats; None where it was not asked for.
        sigma: what functional rows are multiplied by before their products are covariances: a weight's standard
            deviation for gradients, 1 for traces, which carry that of their draws.
        prompt: the same of what was asked alone, before anything is answered; None where inputs are no prompts.
        lengths: what the numbers are to be told of at equal values (see `AtEqualLengths`), such as tokens of prompt
            and answer, (n, c); None where nothing is.
    """

    ids: Sequence[str]
    predicted: Int[np.ndarray, " n"]
    observable: Float[np.ndarray, " n"]
    functional: Mapping[str, Float[np.ndarray, "n _"]]
    functional_norms: Float[np.ndarray, "n L"]
    latent: Mapping[str, Float[np.ndarray, "n _"]] = field(default_factory=dict)
    confidence: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict)
    features: Float[np.ndarray, "n k"] | None = None
    survival: Float[np.ndarray, "n depths"] | None = None
    sigma: float = SIGMA
    prompt: Rows | None = None
    lengths: Float[np.ndarray, "n c"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Any) -> Rows:
        """The rows at `index` (integers or a boolean mask), in that order."""
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        return replace(
            self,
            ids=[self.ids[i] for i in index],
            predicted=self.predicted[index],
            observable=self.observable[index],
            functional={name: memmap.take(rows, index) for name, rows in self.functional.items()},
            functional_norms=self.functional_norms[index],
            latent={name: memmap.take(rows, index) for name, rows in self.latent.items()},
            confidence={name: values[index] for name, values in self.confidence.items()},
            features=None if self.features is None else memmap.take(self.features, index),
            survival=None if self.survival is None else self.survival[index],
            prompt=None if self.prompt is None else self.prompt.take(index),
            lengths=None if self.lengths is None else self.lengths[index],
        )

    @property
    def bytes(self) -> int:
        """What functional and latent rows and features take."""
        features = [] if self.features is None else [self.features]
        own = sum(rows.nbytes for rows in (*self.functional.values(), *self.latent.values(), *features))
        return own + (0 if self.prompt is None else self.prompt.bytes)

    @staticmethod
    def gather(parts: Iterable[Rows], n: int) -> Rows:
        """The n rows of several batches as they come: in memory, or mapped from files where they are too many."""
        coming = iter(parts)
        first = next(coming)
        if first.bytes / max(len(first), 1) * n <= memmap.IN_MEMORY:
            return Rows.concatenate([first, *coming])
        large = {
            kind: {name: memmap.mapped((n, r.shape[1]), r.dtype) for name, r in getattr(first, kind).items()}
            for kind in ("functional", "latent")
        }
        features = None
        if first.features is not None:
            features = memmap.mapped((n, first.features.shape[1]), first.features.dtype)
        some: list[Rows] = []
        done = 0
        for part in itertools.chain([first], coming):
            for kind, arrays in large.items():
                for name, rows in getattr(part, kind).items():
                    arrays[name][done : done + len(part)] = rows
            if features is not None:
                features[done : done + len(part)] = part.features
            done += len(part)
            some.append(replace(part, functional={}, latent={}, features=None))
        return replace(Rows.concatenate(some), features=features, **large)

    @staticmethod
    def concatenate(parts: Sequence[Rows]) -> Rows:
        """Rows of several batches, in order."""
        first = parts[0]
        prompts = [part.prompt for part in parts if part.prompt is not None]
        return replace(
            first,
            ids=[name for part in parts for name in part.ids],
            predicted=np.concatenate([part.predicted for part in parts]),
            observable=np.concatenate([part.observable for part in parts]),
            functional={name: np.concatenate([p.functional[name] for p in parts]) for name in first.functional},
            functional_norms=np.concatenate([part.functional_norms for part in parts]),
            latent={name: np.concatenate([p.latent[name] for p in parts]) for name in first.latent},
            confidence={name: np.concatenate([p.confidence[name] for p in parts]) for name in first.confidence},
            features=_joined([part.features for part in parts]),
            survival=_joined([part.survival for part in parts]),
            prompt=Rows.concatenate(prompts) if prompts else None,
            lengths=_joined([part.lengths for part in parts]),
        )


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if there else None


@dataclass(frozen=True)
class Batch:
    """A few inputs on their way to the network.

    Attributes:
        ids: names of the inputs.
        x: what the network takes, first dimension = samples (a torch tensor, or what a custom observable expects).
        y: original classes where the data say, else None. Never used as the label of an observable.
        truth: 1 = anomalous, 0 = clean where the data say, else None. Never reaches fit or calibration.
    """

    ids: list[str]
    x: Any
    y: np.ndarray | None = None
    truth: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)
