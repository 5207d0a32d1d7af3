"""One call of one layer: what went in, and the observable's gradient with respect to what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from covary.features.engine.accumulator import GradientAccumulator
from covary.features.layouts import Layout, folded


@dataclass(frozen=True)
class Call:
    """What a rule is given.

    Attributes:
        layer: the module that was called, or what an operation was told of its geometry.
        names: the module's own parameter names (`weight`, `bias`) -> names in the network, those that may move only.
        inputs: what the rule asked to keep.
        ds: gradients of the sum of the observables with respect to every tensor that came out, None where unused.
        n: how many samples the pass has.
        layouts: where the samples are in each of these; empty where there is one sample alone.
        through: whether the rule is to return the gradient of the first input.
        arguments: everything the layer was called with, for rules that ask for it.
        argument_layouts: where the samples are in each leaf of `arguments`; None where all samples share it.
    """

    layer: Any
    names: Mapping[str, str]
    inputs: Sequence[Tensor]
    ds: Sequence[Tensor | None]
    n: int
    layouts: Sequence[Layout | None] = ()
    through: bool = False
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    argument_layouts: Sequence[Layout | None] = ()

    @property
    def d(self) -> Tensor:
        """Gradient with respect to the only tensor that came out."""
        (d,) = self.ds
        assert d is not None
        return d

    @property
    def layout(self) -> Layout | None:
        """Where the samples are in the first tensor that came out; None where there is one sample alone."""
        return self.layouts[0] if self.layouts else None

    def fold(self, tensor: Tensor, axis: int | None = None) -> Tensor:
        """(n, positions, ...) of a tensor that is laid out as the output is; `axis` where samples are elsewhere."""
        return folded(tensor, self.layout, self.n, axis)


class Rule(Protocol):
    """How one kind of layer turns a call into shares of its parameters' gradients."""

    def __call__(self, call: Call, ledger: GradientAccumulator) -> Tensor | None: ...


class Tap(torch.autograd.Function):
    """The identity on a layer's outputs; in the backward pass it hands the outputs' gradients to `consume`.

    The layer's inputs are kept by autograd itself, so activation checkpointing drops and recomputes them, and an
    in-place change to one of them between the passes is an error rather than a wrong number. The outputs are marked as
    changed in place, because a view would forbid the in-place activations that often follow.

    Where `consume` returns a gradient it is that of the first kept tensor and goes on from there; the layer then ran
    on a detached input.
    """

    @staticmethod
    def forward(ctx: Any, consume: Callable[..., Any], outputs: int, token: Tensor, *tensors: Tensor) -> Any:
        ctx.consume, ctx.outputs = consume, outputs
        ctx.save_for_backward(*tensors[outputs:])
        ctx.mark_dirty(*tensors[:outputs])
        ctx.set_materialize_grads(False)
        return tensors[0] if outputs == 1 else tensors[:outputs]

    @staticmethod
    def backward(ctx: Any, *ds: Any) -> Any:
        kept = ctx.saved_tensors
        with torch.no_grad():
            through = ctx.consume(ds, kept)
        if through is None:
            return (None, None, None, *ds, *(None for _ in kept))
        return (None, None, None, *(None for _ in ds), through, *(None for _ in kept[1:]))
