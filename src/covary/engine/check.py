"""The engine against autograd: a weighted sum of rows must be the projection of the weighted sum's gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from covary.engine.ledger import Ledger

# Of the rows' total length; a wrong rule or a missed use of a weight is off by order one, reduced precision is not.
TOLERANCE, TOLERANCE_HALF = 0.02, 0.1

# (parameters, by name) -> observables (n,)
Observe = Callable[[Mapping[str, Tensor]], Tensor]


def wrong_layers(
    module: nn.Module, ledger: Ledger, rows: Mapping[str, Tensor], observe: Observe, weights: Tensor
) -> list[str]:
    """Layers whose rows disagree with automatic differentiation, over one training-like backward pass.

    With weights c_i, sum_i c_i row_i = P grad(sum_i c_i f_i). Unequal weights also show where the first dimension of a
    layer's input is not the sample, or where samples influence each other. Gradients are projected as they come and
    freed, so no second copy of the weights is held.
    """
    expected = {layer: torch.zeros_like(r[0], dtype=torch.float64) for layer, r in rows.items()}
    sums: dict[tuple[str, int], Tensor] = {}
    leaves = {name: p.detach() for name, p in module.named_parameters()}
    leaves = {name: p.clone() if p.is_inference() else p for name, p in leaves.items()}

    def collect(name: str) -> Callable[[Tensor], None]:
        def project(leaf: Tensor) -> None:
            place = ledger.places[name]
            assert leaf.grad is not None
            share = place.block.project(place.block.matrix({name: leaf.grad.unsqueeze(0).float()}))
            key = place.layer, place.position
            sums[key] = sums[key] + share if key in sums else share
            leaf.grad = None

        return project

    with torch.inference_mode(False), torch.enable_grad():
        for name in ledger.places:
            leaves[name] = leaves[name].detach().requires_grad_(True)
            leaves[name].register_post_accumulate_grad_hook(collect(name))
        value = observe(leaves)
        if value.requires_grad:
            (value * weights.to(value)).sum().backward()
    wrong = []
    for layer, found in rows.items():
        blocks = ledger.projections[layer].blocks
        parts = [
            sums[layer, i][0] if (layer, i) in sums else torch.zeros(b.numbers, device=found.device)
            for i, b in enumerate(blocks)
        ]
        expected[layer] = torch.cat(parts).double()
        got = (found.double() * weights.double().to(found.device).unsqueeze(-1)).sum(0)
        scale = float((found.double().norm(dim=-1) * weights.double().abs().to(found.device)).sum())
        scale = max(scale, float(expected[layer].norm()))
        half = any(leaves[name].dtype in (torch.float16, torch.bfloat16) for name in ledger.layers[layer])
        off = float((got - expected[layer]).norm())
        if not off <= (TOLERANCE_HALF if half else TOLERANCE) * scale:
            wrong.append(layer)
    return wrong
