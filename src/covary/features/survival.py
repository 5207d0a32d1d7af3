"""Survival under amplification: how firmly a network holds on to its answer when its last layers are turned up.

A trigger's answer outlives amplified weights that change most others (IBD-PSC, Hou et al. 2024, arXiv 2405.09786).
It is functional evidence at a finite step in a structured direction; three more forward passes an input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from covary.features.observables import margin

# Factors in order; the first at which the network changes enough answers is taken. Batch normalisation takes 1.5,
# layer and RMS normalisation more.
FACTORS = (1.5, 2.0, 3.0, 5.0, 8.0)
# Depths looked at, evenly spaced, and depths kept.
TRIED, KEPT = 6, 3
# Share of reference inputs whose answer must change; where no factor changes even the least, survival says nothing.
CHANGED, LEAST_CHANGED = 0.6, 0.3

ChooseLogits = Callable[[Any], Tensor]
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_normalisation(layer: nn.Module) -> bool:
    """Batch, layer, group, instance and RMS normalisation with a scale; those of other libraries by their name."""
    known = isinstance(layer, (_NormBase, nn.LayerNorm, nn.GroupNorm)) or type(layer).__name__.endswith("Norm")
    return known and isinstance(getattr(layer, "weight", None), Tensor)


def amplifiable_layers(module: nn.Module) -> list[str]:
    """Names of the layers that may be amplified, first to last, as the module registers them.

    All normalisations with a scale; in a network without any, linear layers and convolutions but the output layer.
    """
    named = list(module.named_modules())
    norms = [name for name, layer in named if is_normalisation(layer)]
    return norms or [name for name, layer in named if isinstance(layer, _WEIGHTED)][:-1]


class Survival:
    """Log-odds of the network's first answer while the last layers' scale and shift are multiplied by a factor.

    Log-odds instead of the published probabilities: once logits are turned up those reach 1 for many clean inputs as
    well, which then tie at the top. An amplified network is the network itself called with a few other tensors, so it
    takes no memory to speak of.

    Args:
        module: the network in evaluation mode.
        choose_logits: picks logits (n, C) out of what the module returns.
        chosen: `state` of one that has chosen before.
    """

    def __init__(self, module: nn.Module, choose_logits: ChooseLogits, chosen: dict[str, Any] | None = None) -> None:
        self.module, self.choose_logits = module, choose_logits
        self.layers = amplifiable_layers(module)
        self.factor, self.depths, self.changed = FACTORS[0], [], 0.0
        if chosen is not None:
            self.factor, self.changed = float(chosen["factor"]), float(chosen["changed"])
            self.depths = [int(depth) for depth in chosen["depths"]]

    @property
    def state(self) -> dict[str, Any]:
        """What a saved detector keeps: the factor, how many last layers each pass amplifies, and what that changes.

        `changed` is the largest share of reference inputs whose answer changes; `depths` is empty where survival says
        nothing.
        """
        return {"factor": self.factor, "depths": self.depths, "changed": self.changed}

    def choose(self, batches: Iterable[Any]) -> Survival:
        """Takes the first factor that changes more than 60 % of answers at some depth, and three depths from there on.

        Six evenly spaced depths are tried. Where the first of them is near the end the last three are taken. A network
        of convolutions and rectifiers alone only scales its logits: where no factor changes 30 % of answers there are
        no depths.

        Args:
            batches: reference inputs as the network takes them; a few hundred are enough.
        """
        batches = list(batches)
        tried = even_depths(len(self.layers))
        first = [self._answers(x) for x in batches]
        n = max(1, sum(len(answers) for answers in first))
        shares: list[float] = []
        for self.factor in FACTORS if tried else ():
            shares = [self._changed(batches, first, depth) / n for depth in tried]
            if max(shares) > CHANGED:
                break
        self.changed = max(shares, default=0.0)
        start = next((i for i, share in enumerate(shares) if share > CHANGED), len(tried))
        start = max(0, min(start, len(tried) - KEPT))
        self.depths = tried[start : start + KEPT] if self.changed >= LEAST_CHANGED else []
        return self

    def __call__(self, x: Any, predicted: Int[Tensor, " n"]) -> Float[Tensor, "n depths"]:
        """Log-odds of the answers `predicted` in nats, a column a depth; higher = the answer survives."""
        return torch.stack([margin(self.logits(x, depth), predicted) for depth in self.depths], dim=-1)

    def logits(self, x: Any, depth: int) -> Float[Tensor, "n C"]:
        """Logits with the last `depth` layers amplified."""
        # By identity: functional_call puts the first name of a shared parameter in all its places.
        last = {id(p) for name in self.layers[-depth:] for p in self._parameters(name)}
        turned = {name: p.detach() * self.factor for name, p in self.module.named_parameters() if id(p) in last}
        with torch.no_grad():
            return self.choose_logits(functional_call(self.module, turned, (x,))).float()

    def _parameters(self, layer: str) -> list[nn.Parameter]:
        return list(self.module.get_submodule(layer).parameters(recurse=False))

    def _changed(self, batches: list[Any], first: list[Tensor], depth: int) -> int:
        pairs = zip(batches, first, strict=True)
        return sum(int((self.logits(x, depth).argmax(-1) != answers).sum()) for x, answers in pairs)

    def _answers(self, x: Any) -> Int[Tensor, " n"]:
        with torch.no_grad():
            return self.choose_logits(self.module(x)).argmax(-1)


def even_depths(layers: int, tried: int = TRIED) -> list[int]:
    """Up to six numbers of last layers, evenly spaced, the last of them all."""
    return sorted({max(1, round(layers * i / tried)) for i in range(1, tried + 1)}) if layers else []
