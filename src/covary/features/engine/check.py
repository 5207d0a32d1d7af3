"""The engine against autograd: a weighted sum of rows must be the projection of the weighted sum's gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from covary.features.engine.accumulator import GradientAccumulator

# Of the rows' total length: rounding stays far below, and a small use of a weight that was missed does not.
TOLERANCE, TOLERANCE_HALF = 1e-3, 0.1
# Of the longest layer's rows: shorter ones than that are rounding, such as a bias before a normalisation.
ROUNDING = 1e-6


def wrong_layers(
    module: nn.Module,
    ledger: GradientAccumulator,
    rows: Mapping[str, Tensor],
    observe: Callable[[], Tensor],
    weights: Float[Tensor, " n"],
) -> list[str]:
    """Layers whose rows disagree with autograd, over one training-like backward pass.

    With weights c_i, sum_i c_i row_i = P grad(sum_i c_i f_i). Unequal weights also show where the first dimension of a
    layer's input is not the sample, or where samples influence each other. Gradients are projected as they come and
    freed, so no second copy of the weights is held; the parameters' own `grad` is put back. Weights that are elsewhere
    until their layer runs (offloaded ones) get no gradient from autograd: their layers are left out.
    """
    sums: dict[tuple[str, int], Tensor] = {}

    parameters = dict(module.named_parameters())
    before = {name: (parameter.requires_grad, parameter.grad) for name, parameter in parameters.items()}
    handles = []
    try:
        for name, parameter in parameters.items():
            # The parameters themselves, not stand-ins: checkpointed layers look them up again in the backward pass.
            parameter.requires_grad_(name in ledger.places and not parameter.is_meta)
            parameter.grad = None
            if parameter.requires_grad:
                handles.append(parameter.register_post_accumulate_grad_hook(partial(_project, ledger, sums, name)))
        with torch.inference_mode(False), torch.enable_grad():
            value = observe()
            if value.requires_grad:
                (value * weights.to(value)).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
        for name, (requires, gradient) in before.items():
            parameters[name].requires_grad_(requires)
            parameters[name].grad = gradient
    wrong = []
    lengths = {
        layer: float((found.double().norm(dim=-1) * weights.double().abs().to(found.device)).sum())
        for layer, found in rows.items()
    }
    longest = max(lengths.values(), default=0.0)
    away = set(offloaded(module))
    for layer, found in rows.items():
        if away.intersection(ledger.layers[layer]):
            continue
        blocks = ledger.projections[layer].blocks
        parts = [
            sums[layer, i][0] if (layer, i) in sums else torch.zeros(b.numbers, device=found.device)
            for i, b in enumerate(blocks)
        ]
        expected = torch.cat(parts).double()
        got = (found.double() * weights.double().to(found.device).unsqueeze(-1)).sum(0)
        scale = max(lengths[layer], float(expected.norm()))
        half = any(parameters[name].dtype in (torch.float16, torch.bfloat16) for name in ledger.layers[layer])
        off = float((got - expected).norm())
        if not off <= (TOLERANCE_HALF if half else TOLERANCE) * scale + ROUNDING * longest:
            wrong.append(layer)
    return wrong


def _project(ledger: GradientAccumulator, sums: dict[tuple[str, int], Tensor], name: str, parameter: Tensor) -> None:
    place = ledger.places[name]
    assert parameter.grad is not None
    gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
    share = place.block.project(place.block.matrix({name: gradient.unsqueeze(0).float()}))
    key = place.layer, place.position
    sums[key] = sums[key] + share if key in sums else share
    parameter.grad = None


def offloaded(module: nn.Module) -> list[str]:
    """Names of parameters that hold no numbers while their layer does not run."""
    return [name for name, parameter in module.named_parameters() if parameter.is_meta]
