"""What every baseline gets: one trusted split and the same inputs, as rows, features and a network to ask again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from covary.errors import CovaryError
from covary.scoring.rows import Rows

Pixels = Float[Tensor, "n c h w"]


@dataclass(frozen=True)
class Probe:
    """The network and the images behind the rows, for baselines that perturb one or the other.

    Attributes:
        module: the network in evaluation mode, fed pixels after mean and std; gives logits.
        trusted, queries: pixels in [0, 1], in the order of the rows.
        trusted_labels: true classes of the trusted images, (n,).
        mean, std: per channel, or None.
        sampling, sampling_labels: further clean images with true classes, for samplers that need a loss; or None.
        folder: where a baseline that takes hours keeps its checkpoints, or None.
        half: answers on changed images or weights are computed in bfloat16, for large networks on a processor.
    """

    module: nn.Module
    trusted: Float[Tensor, "n c h w"]
    queries: Float[Tensor, "q c h w"]
    trusted_labels: Int[np.ndarray, " n"]
    mean: list[float] | None = None
    std: list[float] | None = None
    sampling: Float[Tensor, "m c h w"] | None = None
    sampling_labels: Int[np.ndarray, " m"] | None = None
    folder: Path | None = None
    batch: int = 256
    half: bool = False

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.module.parameters()).device

    def normalised(self, pixels: Pixels) -> Pixels:
        """What the network takes: (pixels - mean) / std on its device."""
        pixels = pixels.to(self.device)
        mean, std = (torch.tensor(v or [neutral], device=self.device).view(-1, 1, 1)
                     for v, neutral in ((self.mean, 0.0), (self.std, 1.0)))  # fmt: skip
        return (pixels - mean) / std

    def logits(
        self, pixels: Pixels, module: nn.Module | None = None, exact: bool = False
    ) -> Float[np.ndarray, "n classes"]:
        """Logits of images, a batch at a time; `module` stands in for the network (an amplified copy).

        `exact` is for those who look inside while it runs: never in bfloat16.
        """
        queries = self.module if module is None else module
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=self.half and not exact)
        with torch.inference_mode(), half:
            parts = [queries(self.normalised(part)).float().cpu().numpy() for part in pixels.split(self.batch)]
        return np.concatenate(parts).astype(np.float64)

    def predicted(self, pixels: Pixels) -> Int[np.ndarray, " n"]:
        """Predicted classes of images."""
        return self.logits(pixels).argmax(1).astype(np.int64)


@dataclass(frozen=True)
class Material:
    """Trusted and query samples of one split; a baseline learns from the former and scores the latter.

    Attributes:
        trusted: reference and fit samples together, those the network gets right.
        queries: what is to be scored: the calibration samples and the inputs, in one pile.
        trusted_features, query_features: what the last linear layer takes.
        reference, fit: the two roles apart, for scores that keep them apart.
        probe: network and images, where there are any.
        seed: of whatever a baseline draws.
    """

    trusted: Rows
    queries: Rows
    trusted_features: Float[np.ndarray, "n d"]
    query_features: Float[np.ndarray, "q d"]
    reference: Rows | None = None
    fit: Rows | None = None
    probe: Probe | None = None
    seed: int = 0

    @property
    def network(self) -> Probe:
        """The probe, for baselines that cannot do without."""
        if self.probe is None:
            raise CovaryError("this baseline asks the network again", "material with a probe")
        return self.probe

    @property
    def roles(self) -> tuple[Rows, Rows]:
        """Reference and fit samples."""
        if self.reference is None or self.fit is None:
            raise CovaryError("this baseline keeps reference and fit samples apart", "material with both roles")
        return self.reference, self.fit


@dataclass(frozen=True)
class Baseline:
    """One line of the table.

    Attributes:
        score: (material, settings by name) -> scores of the queries, higher = more anomalous.
        needs: `forward` (answers and pooled activations of one pass), `features` (what the last linear layer takes),
            `gradients` (its backward pass, too), `network` (passes on new images or weights) or `chain` (hours).
        grid: values of each setting that tuning may choose among; the first is the default, mostly the published one.
    """

    score: Callable[..., Float[np.ndarray, " q"]]
    needs: str = "forward"
    grid: dict[str, tuple] = field(default_factory=dict)

    def __call__(self, material: Material, **settings: object) -> Float[np.ndarray, " q"]:
        """Scores of the queries; settings not given are the first of their grids."""
        first = {name: values[0] for name, values in self.grid.items()}
        return np.asarray(self.score(material, **{**first, **settings}), np.float64)
