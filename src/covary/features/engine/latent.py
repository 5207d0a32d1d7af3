"""The engine of forward passes alone: pooled activations and the network's own answer, no gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from covary.errors import CovaryError
from covary.features.activations import watched_layers, with_zeros
from covary.features.engine.compressed import Compressed
from covary.features.engine.fast import FastEngine, Observe
from covary.features.engine.hooks import without_weight_gradients
from covary.features.exact import ChooseLogits


class LatentEngine(FastEngine):
    """What `FastEngine` gives without the backward pass: no rows of gradients, the same activations and logits.

    Where samples lie in the layers is found as there, and samples that meet in the network go one by one.

    Args:
        module: the network, in evaluation mode.
        choose_logits: picks logits (n, C) out of what it returns.
        observable: of the network's own answer.

    Raises:
        CovaryError: no layer has activations that can be read.
    """

    def __init__(self, module: nn.Module, *, choose_logits: ChooseLogits, observable: Observe) -> None:
        if not watched_layers(module):
            found = "evidence latent of a network without a convolution, normalisation, linear or attention layer"
            raise CovaryError(found, "layers whose activations can be read", "choose evidence=fast")
        super().__init__(module, {}, {}, observable=observable, choose_logits=choose_logits, user_observable=None)

    def _pass(self, x: Any, autocast: Callable[[], Any], observables: Sequence[Observe | None]) -> list[Compressed]:
        n = len(tree_leaves(x)[0])
        with (
            without_weight_gradients(self.module), torch.no_grad(), self.hooked.expand(n), autocast(),
            self.hooked.pooling(n) as activations,
        ):  # fmt: skip
            values, (predicted, logits) = self._forward(x, observables)
        activations = with_zeros(activations, self._watched, n)
        return [Compressed({}, {}, value, predicted, logits, activations) for value in values]

    def _check(self, x: Any) -> None:
        """There are no gradients to compare with autograd."""

    def _probe(self, x: Any) -> Tensor:
        with torch.no_grad():
            output = self.module(x)
        # The other way round than in a pass, so that who chooses can tell a look from it.
        with torch.enable_grad():
            return self.choose_logits(output)
