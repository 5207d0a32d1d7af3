"""One call of one layer: what went in, and the observable's gradient with respect to what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from covary.features.engine.accumulator import GradientAccumulator


@dataclass(frozen=True)
class Call:
    """What a rule is given.

    Attributes:
        layer: the module that was called.
        names: the module's own parameter names (`weight`, `bias`) -> names in the network, those that may move only.
        inputs: what the rule asked to keep, first dimension = samples.
        d: gradient of the sum of the observables with respect to the output, first dimension = samples.
        through: whether the rule is to return the gradient of the first input.
        arguments: everything the layer was called with, for rules that ask for it.
    """

    layer: nn.Module
    names: Mapping[str, str]
    inputs: Sequence[Tensor]
    d: Tensor
    through: bool = False
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})


class Rule(Protocol):
    """How one kind of layer turns a call into shares of its parameters' gradients."""

    def __call__(self, call: Call, ledger: GradientAccumulator) -> Tensor | None: ...


class Tap(torch.autograd.Function):
    """The identity on a layer's output; in the backward pass it hands the output's gradient to `consume`.

    The layer's inputs are kept by autograd itself, so activation checkpointing drops and recomputes them, and an
    in-place change to one of them between the passes is an error rather than a wrong number. The output is marked as
    changed in place, because a view would forbid the in-place activations that often follow.

    Where `consume` returns a gradient it is that of the first kept tensor and goes on from there; the layer then ran
    on a detached input.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, token: Tensor, consume: Callable[..., Any], *kept: Tensor) -> Tensor:
        ctx.consume = consume
        ctx.save_for_backward(*kept)
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (d,) = gradients
        kept = ctx.saved_tensors
        with torch.no_grad():
            through = ctx.consume(d, kept)
        rest = tuple(None for _ in kept[1:])
        return (d, None, None, None, *rest) if through is None else (None, None, None, through, *rest)


def by_sample(tensor: Tensor, n: int) -> Tensor:
    """(n * m, ...) -> (n, m, ...) where a network folded positions into the first dimension; else as it is."""
    if tensor.shape[0] == n:
        return tensor
    return tensor.unflatten(0, (n, tensor.shape[0] // n))
