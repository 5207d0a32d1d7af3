"""Observables: one number per sample whose movement under small weight changes tells mechanisms apart.

The label is always the network's own prediction at w*, frozen; never a true label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from covary.errors import unknown_name

Logits = Float[Tensor, "n C"]
Labels = Int[Tensor, " n"]

# A user's own observable: (parameters, buffers, batch of inputs) -> one scalar per sample.
UserObservable = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Any], Tensor]


def margin(logits: Logits, labels: Labels) -> Float[Tensor, " n"]:
    """Log-odds of the frozen label, log p_y - log(1 - p_y), which never saturates.

    m = z_y - logsumexp(z_k, k != y), in nats; the larger, the surer the network. The others' logsumexp is taken
    on its own rather than as log(1 - p_y), so at a margin of 60 float32 still gives the value and its gradient.
    """
    # Not one_hot: it inspects its values, which vmap cannot follow.
    chosen = torch.arange(logits.shape[-1], device=logits.device) == labels.unsqueeze(-1)
    own = logits.masked_fill(~chosen, 0.0).sum(-1)
    return own - logits.masked_fill(chosen, -torch.inf).logsumexp(-1)


def nll(logits: Logits, labels: Labels) -> Float[Tensor, " n"]:
    """Negative log-likelihood of the frozen label, -log p_y = softplus(-margin), in nats, >= 0 (arXiv 2604.18970).

    Its gradient is (1 - p_y) times that of -margin: the direction survives saturation, the size does not.
    """
    return F.softplus(-margin(logits, labels))


OBSERVABLES: dict[str, Callable[[Logits, Labels], Float[Tensor, " n"]]] = {"margin": margin, "nll": nll}


def observable_named(name: str) -> Callable[[Logits, Labels], Float[Tensor, " n"]]:
    """The observable of that name; an unknown name lists the valid ones."""
    if name not in OBSERVABLES:
        raise unknown_name("observable", name, OBSERVABLES)
    return OBSERVABLES[name]


def energy(logits: Logits) -> Float[Tensor, " n"]:
    """Energy -logsumexp(z) of the logits; higher = the network has less to say (Liu et al. 2020, arXiv 2010.03759)."""
    return -logits.logsumexp(-1)
