"""What a pile and amplified weights show of triggered inputs, differentiable, for an attacker who hides from both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from covary.features.survival import Survival
from covary_bench.images.attacks.clean_reference import quantile_distance
from covary_bench.images.attacks.own_profile import margins_of

SMALL = 1e-6


class Amplified:
    """Survival as covary measures it, with gradients: log-odds of the attacker's class under amplified weights.

    Layers and factor are chosen on clean inputs as a detector chooses them, and anew as the network changes.
    """

    def __init__(self, network: nn.Module, clean: Iterable[Float[Tensor, "n c h w"]], target: int) -> None:
        self.network, self.target = network, target
        self.survival = Survival(network, lambda out: out).choose(clean)

    def log_odds(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n depths"]:
        """A column a depth; no columns where survival says nothing."""
        y = torch.full((len(x),), self.target)
        found = [margins_of(functional_call(self.network, self._turned(d), (x,)), y) for d in self.survival.depths]
        return torch.stack(found, dim=1) if found else torch.zeros(len(x), 0)

    def apart(self, odd: Float[Tensor, "a c h w"], own: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        """How far triggered inputs survive otherwise than clean ones of the attacker's class; 0 = alike."""
        if not self.survival.depths:
            return torch.zeros(())
        with torch.no_grad():
            clean = self.log_odds(own)
        return quantile_distance(self.log_odds(odd), clean).mean()

    def _turned(self, depth: int) -> dict[str, Tensor]:
        last = self.survival.layers[-depth:]
        own = {id(p) for name in last for p in self.network.get_submodule(name).parameters(recurse=False)}
        return {name: p * self.survival.factor for name, p in self.network.named_parameters() if id(p) in own}


def direction_gap(
    odd: Float[Tensor, "a d"], clean: Float[Tensor, "b d"], by: Float[Tensor, "d d"]
) -> Float[Tensor, ""]:
    """How much longer triggered rows are than clean ones along their own leading direction, in nats; 0 = no longer.

    max(0, log l(odd) - log l(clean)), l the largest eigenvalue of the second moment of x L for by = L L^T: what a pile
    of them would add to the moments that covary looks along. `clean` gets no gradient.
    """
    root = torch.linalg.cholesky(by + SMALL * by.diagonal().mean() * torch.eye(len(by)))

    def leading(rows: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(rows @ root, 2).square() / len(rows)

    return torch.relu(leading(odd).log() - leading(clean.detach()).log())


def direction_gaps(pairs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Float[Tensor, ""]:
    """Mean over several kinds of numbers."""
    return torch.stack([direction_gap(*pair) for pair in pairs]).mean()
