"""The last linear layer of a network: what scores of last features need beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp
from torch import nn

from covary_bench.baselines.material import Probe


@dataclass(frozen=True)
class Head:
    """Weight W, (classes, d), and bias b, (classes,)."""

    weight: Float[np.ndarray, "classes d"]
    bias: Float[np.ndarray, " classes"]

    @staticmethod
    def of(probe: Probe) -> Head:
        """The last linear layer of a probe's network."""
        last = [layer for layer in probe.module.modules() if isinstance(layer, nn.Linear)][-1]
        weight = last.weight.detach().double().cpu().numpy()
        bias = np.zeros(len(weight)) if last.bias is None else last.bias.detach().double().cpu().numpy()
        return Head(weight, bias)

    def logits(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n classes"]:
        """W z + b."""
        return np.asarray(features, np.float64) @ self.weight.T + self.bias

    def energy(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """log sum exp of the logits; higher = surer."""
        return np.asarray(logsumexp(self.logits(features), axis=1))
