"""The taps of one pass: what a layer was called with and gave, handed to its rule in the backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from covary.features.activations import call_of
from covary.features.engine import LayerRule
from covary.features.engine.accumulator import GradientAccumulator
from covary.features.engine.calls import Call, Tap
from covary.features.engine.rules.operations import Used
from covary.features.layouts import Layout, Unsettled


class RuleFailed(Exception):
    """A layer's rule could not use what the layer was called with."""

    def __init__(self, parameters: list[str], problem: Exception) -> None:
        super().__init__(f"{', '.join(parameters)}: {problem}")
        self.parameters = parameters


@dataclass(frozen=True)
class Places:
    """Where the samples are in what one call was given and gave; None for what all samples share."""

    inputs: tuple[Layout | None, ...]
    outputs: tuple[Layout | None, ...]


def operation_of(name: str) -> str:
    """The key under which calls of known operations inside a layer are counted."""
    return f"{name}()"


class Taps:
    """What all taps of one pass over n samples share.

    Args:
        ledger: where contributions go.
        token: a tensor that asks for its gradient, so that a graph is built though no weight does.
        n: how many samples the pass has.
        places: by layer name, where the samples are in every call.

    Attributes:
        bytes: size of what was tapped.
    """

    def __init__(
        self, ledger: GradientAccumulator, token: Tensor, n: int, places: Mapping[str, list[Places]] | None
    ) -> None:
        self.ledger, self.token, self.n, self.places = ledger, token, n, places or {}
        self.bytes = 0
        self._calls: Counter[str] = Counter()

    def places_of(self, name: str) -> Places | None:
        """Where the samples are in the coming call of a layer."""
        count = self._calls[name]
        self._calls[name] += 1
        return None if self.n == 1 else call_of(self.places.get(name, []), count)

    def tap(
        self,
        rule: Callable[..., Any],
        names: Mapping[str, str],
        make: Callable[..., Call],
        outputs: list[Tensor],
        kept: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """The outputs, tapped: their gradients come to the rule as the call that `make` makes of them and of `kept`."""
        tapped = Tap.apply(partial(self._consume, rule, names, make), len(outputs), self.token, *outputs, *kept)
        return (tapped,) if isinstance(tapped, Tensor) else tapped

    def _consume(
        self,
        rule: Callable[..., Any],
        names: Mapping[str, str],
        make: Callable[..., Call],
        ds: tuple[Tensor | None, ...],
        saved: tuple[Tensor, ...],
    ) -> Tensor | None:
        try:
            return rule(make(ds=ds, inputs=saved), self.ledger)
        except Exception as problem:
            if isinstance(problem, (RuleFailed, Unsettled)) or "out of memory" in str(problem).lower():
                raise
            raise RuleFailed(list(names.values()), problem) from problem


@dataclass(frozen=True)
class Arguments:
    """Everything a layer was called with, but for the tensors, which autograd alone holds.

    Attributes:
        leaves: what is no tensor, None in the tensors' places.
        tensors: place and identity of each tensor. The same one twice stays the same object: attention asks whether
            query is key.
        structure: of the leaves.
    """

    leaves: list[Any]
    tensors: list[tuple[int, int]]
    structure: TreeSpec

    def filled(self, saved: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with their tensors."""
        same = {key: tensor for (_, key), tensor in zip(self.tensors, saved, strict=True)}
        leaves = list(self.leaves)
        for i, key in self.tensors:
            leaves[i] = same[key]
        return tree_unflatten(leaves, self.structure)


class LayerTap:
    """The hooks of one layer in one pass."""

    def __init__(self, taps: Taps, name: str, layer: nn.Module, rule: LayerRule, names: Mapping[str, str]) -> None:
        self.taps, self.name, self.layer, self.rule, self.names = taps, name, layer, rule, names
        self._detached: list[Tensor] = []

    def before(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Cuts the graph in front of a layer whose rule goes backward through it itself."""
        if not torch.is_grad_enabled() or not inputs:
            return None
        self._detached.append(inputs[0])
        return inputs[0].detach(), *inputs[1:]

    def after(self, _: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Taps what comes out."""
        # Checkpointing runs layers without gradients first; calls count where the graph is built.
        if not torch.is_grad_enabled():
            return None
        rule, places = self.rule, self.taps.places_of(self.name)
        own = self._detached.pop() if self._detached else None
        leaves, structure = tree_flatten((inputs, kwargs))
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors = tensors if rule.all_arguments else tensors[:1]
        kept = [leaves[i].detach() for i in tensors] if own is None else [own]
        arguments = None
        if rule.all_arguments:
            rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            arguments = Arguments(rest, [(i, id(leaves[i])) for i in tensors], structure)
        make = partial(self._call, places=places, arguments=arguments, through=own is not None and own.requires_grad)
        outs, shape = tree_flatten(output)
        floats = [i for i, o in enumerate(outs) if isinstance(o, Tensor) and o.is_floating_point()]
        floats = floats if rule.all_arguments else floats[:1]
        if not floats:
            raise RuleFailed(list(self.names.values()), TypeError("no tensor comes out of the layer"))
        self.taps.bytes += sum(outs[i].numel() * outs[i].element_size() for i in floats)
        # Marking a view as changed in place would drag its base along, and what an unknown layer returns may be
        # something it keeps.
        ready = [
            o.clone() if rule.all_arguments or (o._is_view() and not o.requires_grad) else o
            for o in (outs[i] for i in floats)
        ]
        for i, o in zip(floats, self.taps.tap(rule.rule, self.names, make, ready, kept), strict=True):
            outs[i] = o
        return tree_unflatten(outs, shape)

    def _call(
        self,
        ds: Sequence[Tensor | None],
        inputs: Sequence[Tensor],
        places: Places | None,
        arguments: Arguments | None,
        through: bool,
    ) -> Call:
        inside, outside = ((), ()) if places is None else (places.inputs, places.outputs)
        whole = ((), {}) if arguments is None else arguments.filled(inputs)
        return Call(self.layer, self.names, inputs, ds, self.taps.n, outside, through, whole, inside)


class OperationTap:
    """Known operations inside one layer, tapped one by one; `unknown` parameters are left alone."""

    def __init__(self, taps: Taps, name: str, unknown: Sequence[str]) -> None:
        self.taps, self.name, self.unknown = taps, name, unknown

    def __call__(self, used: Used, output: Tensor) -> Tensor:
        """What comes out of an operation, tapped."""
        names = {key: full for key, full in used.names.items() if full not in self.unknown}
        if not torch.is_grad_enabled() or not names:
            return output
        places = self.taps.places_of(operation_of(self.name))
        layouts = () if places is None else places.outputs
        self.taps.bytes += output.numel() * output.element_size()
        make = partial(Call, used.layer, names, n=self.taps.n, layouts=layouts)
        ready = output.clone() if output._is_view() else output
        return self.taps.tap(used.rule, names, make, [ready], [used.input.detach()])[0]


def looked_up_per_sample(n: int, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Before an embedding of what all n samples share: one row a sample instead; the values are the same."""
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 2 and inputs[0].shape[0] == 1 < n:
        return inputs[0].expand(n, -1), *inputs[1:]
    return None
