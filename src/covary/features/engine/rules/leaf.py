"""Layers without a rule of their own: the exact gradient of that layer alone, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrize
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from covary.features.engine.accumulator import GradientAccumulator
from covary.features.engine.calls import Call
from covary.features.exact import dense

# Whole gradients of one layer may take this many bytes at once.
FULL_GRADIENT_BYTES = 256 * 2**20


def on_its_own(layer: nn.Module) -> bool:
    """Whether a layer's output is a function of its inputs and of parameters that it alone holds."""
    inner = set(layer.parametrizations.modules()) if parametrize.is_parametrized(layer) else set()  # type: ignore[union-attr]
    others = [child for child in layer.modules() if child is not layer and child not in inner]
    owning = any(True for child in others for _ in child.parameters(recurse=False))
    # Hooks before the forward may set weights, as torch.nn.utils.weight_norm does.
    return not owning and not layer.training and not layer._forward_pre_hooks


class Bare(nn.Module):
    """A layer called past its hooks."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.layer.forward(*inputs, **kwargs)


def leaf_rule(call: Call, ledger: GradientAccumulator) -> None:
    """d/dw <d_i, layer(x_i; w)> for every sample i; arguments that have no dimension of samples are shared.

    Under vmap where the layer allows it, else one sample at a time by plain autograd.
    """
    if call.n == 1:
        parts = [_plain(call, tree_leaves(call.arguments), call.ds)]
        _add(call, ledger, [tuple(g.unsqueeze(0) for g in part) for part in parts])
        return
    try:
        parts = list(_vectorised(call))
    except Exception as problem:
        if "out of memory" in str(problem).lower():
            raise
        parts = [tuple(g.unsqueeze(0) for g in part) for part in _one_by_one(call)]
    _add(call, ledger, parts)


def _add(call: Call, ledger: GradientAccumulator, parts: Sequence[Sequence[Tensor]]) -> None:
    for position, full in enumerate(call.names.values()):
        ledger.add_gradient(full, torch.cat([part[position] for part in parts]))


def _own(call: Call) -> tuple[Bare, dict[str, Tensor]]:
    return Bare(call.layer), {f"layer.{key}": call.layer.get_parameter(key).detach() for key in call.names}


def _split(call: Call) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """By position, the arguments and output gradients that have samples, first dimension = samples."""
    leaves = tree_leaves(call.arguments)
    arguments = {
        i: layout.split(leaf, call.n)
        for i, (leaf, layout) in enumerate(zip(leaves, call.argument_layouts, strict=False))
        if layout is not None
    }
    ds = {
        i: layout.split(d, call.n)
        for i, (d, layout) in enumerate(zip(call.ds, call.layouts, strict=False))
        if d is not None and layout is not None
    }
    return arguments, ds


def _vectorised(call: Call) -> Iterator[tuple[Tensor, ...]]:
    bare, moving = _own(call)
    leaves, structure = tree_flatten(call.arguments)
    arguments, ds = _split(call)

    step = max(1, FULL_GRADIENT_BYTES // (4 * sum(p.numel() for p in moving.values())))
    each = vmap(grad(partial(_along, bare, leaves, structure)), in_dims=(None, 0, 0))
    for start in range(0, call.n, step):
        some = slice(start, start + step)
        got = each(moving, {i: d[some] for i, d in ds.items()}, {i: leaf[some] for i, leaf in arguments.items()})
        yield tuple(got.values())


def _along(
    bare: Bare,
    leaves: Sequence[Any],
    structure: TreeSpec,
    moving: dict[str, Tensor],
    ds: dict[int, Tensor],
    own: dict[int, Tensor],
) -> Tensor:
    """<d, layer(x; w)> of one sample."""
    inputs, kwargs = tree_unflatten([own.get(i, leaf) for i, leaf in enumerate(leaves)], structure)
    outputs = output_tensors(functional_call(bare, moving, inputs, kwargs))
    return torch.stack([(outputs[i] * d).sum() for i, d in ds.items()]).sum()


def _one_by_one(call: Call) -> Iterator[tuple[Tensor, ...]]:
    leaves = tree_leaves(call.arguments)
    arguments, ds = _split(call)
    for n in range(call.n):
        own = [arguments[i][n] if i in arguments else leaf for i, leaf in enumerate(leaves)]
        yield _plain(call, own, [ds[i][n] if i in ds else None for i in range(len(call.ds))])


def _plain(call: Call, leaves: Sequence[Any], ds: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The layer's gradient for one sample, by plain autograd."""
    bare, moving = _own(call)
    _, structure = tree_flatten(call.arguments)
    moving = {name: value.requires_grad_(True) for name, value in moving.items()}
    with torch.enable_grad():
        inputs, kwargs = tree_unflatten(list(leaves), structure)
        outputs = output_tensors(functional_call(bare, moving, inputs, kwargs))
        used = [(out, d) for out, d in zip(outputs, ds, strict=True) if d is not None and out.requires_grad]
        outs, used_ds = [out for out, _ in used], [d.to(out) for out, d in used]
        found = torch.autograd.grad(outs, list(moving.values()), used_ds, allow_unused=True) if outs else ()
    found = found or (None,) * len(moving)
    return tuple(dense(g, p) for g, p in zip(found, moving.values(), strict=True))


def output_tensors(output: Any) -> list[Tensor]:
    """The floating tensors of an output, in order."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
