"""IBD-PSC: a trigger's prediction survives amplified weights (Hou et al. 2024, arXiv 2405.09786, section 4)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import softmax
from torch import nn

from covary_bench.baselines.material import Material, Probe

MODELS = 5
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def amplified(module: nn.Module, last: int, omega: float) -> nn.Module:
    """A copy whose `last` last normalisation layers have scale and shift times omega.

    A network without normalisation has its last convolutions and linear layers amplified instead, its output layer
    apart: a departure from the paper, which asks for batch normalisation.
    """
    twin = copy.deepcopy(module).eval()
    with torch.no_grad():
        for layer in _layers(twin)[-last:] if last else []:
            for parameter in layer.parameters(recurse=False):
                parameter.mul_(omega)
    return twin


def _layers(module: nn.Module) -> Sequence[nn.Module]:
    norms = [layer for layer in module.modules() if isinstance(layer, _NORMS) and layer.weight is not None]
    return norms or [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)][:-1]


def first_depth(probe: Probe, omega: float, error: float) -> int:
    """Fewest last layers whose amplification makes the network wrong on more than `error` of the trusted images."""
    depth = len(_layers(probe.module))
    for last in range(1, depth + 1):
        predicted = probe.logits(probe.trusted, amplified(probe.module, last, omega)).argmax(1)
        if (predicted != probe.trusted_labels).mean() > error:
            return last
    return depth


def ibd_psc(m: Material, omega: float = 1.5, error: float = 0.6) -> Float[np.ndarray, " q"]:
    """Mean over five ever more amplified networks of the confidence in the class predicted at first, in [0, 1].

    Higher = more anomalous.
    """
    probe = m.network
    label = probe.predicted(probe.queries)
    depth = len(_layers(probe.module))
    start = first_depth(probe, omega, error)
    lasts = [min(start + i, depth) for i in range(MODELS)]
    found = {last: softmax(probe.logits(probe.queries, amplified(probe.module, last, omega)), axis=1)
             for last in dict.fromkeys(lasts)}  # fmt: skip
    return np.mean([found[last][np.arange(len(label)), label] for last in lasts], axis=0)
