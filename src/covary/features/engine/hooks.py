"""The pass itself: hooks on the known layers, one backward over activations, weights never differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from covary.features.activations import pooled_activations
from covary.features.engine import LAYER_RULES, LEAF_RULE, LayerRule
from covary.features.engine.accumulator import GradientAccumulator
from covary.features.engine.calls import Call, Tap


class RuleFailed(Exception):
    """A layer's rule could not use what the layer was called with."""

    def __init__(self, parameters: list[str], problem: Exception) -> None:
        super().__init__(f"{', '.join(parameters)}: {problem}")
        self.parameters = parameters


class HookedPass:
    """Runs a network once forward and once backward and fills a ledger with the known layers' compressed gradients.

    Args:
        module: the network; left as it was after every pass.
        ledger: where contributions go; its places say which parameters are wanted.
        pooled: whether activations are pooled along the way.

    Attributes:
        axes: the sample's dimension in layers' outputs, by name; 0 where it is not told.
        bytes: size of the hooked layers' outputs in the last pass.
        unknown: parameters that no hook sees to.
    """

    def __init__(self, module: nn.Module, ledger: GradientAccumulator, pooled: bool = True) -> None:
        self.module, self.ledger, self.pooled = module, ledger, pooled
        self.rules: dict[str, tuple[nn.Module, LayerRule, dict[str, str]]] = {}
        first = {id(parameter): name for name, parameter in module.named_parameters()}
        known: set[str] = set()
        covered: set[tuple[nn.Module, str]] = set()
        refused: set[str] = set()
        for name, layer in module.named_modules():
            direct = {key: first[id(p)] for key, p in layer.named_parameters(recurse=False)}
            direct = {key: full for key, full in direct.items() if full in ledger.places}
            rule = LAYER_RULES.get(type(layer), LEAF_RULE)
            inside = {key: first[id(p)] for key, p in layer.named_parameters()}
            own = {key: inside[key] for key in rule.parameters or direct if inside.get(key) in ledger.places}
            holds = rule.holds(layer) and set(direct) <= set(own)
            if own and holds:
                self.rules[name] = layer, rule, own
                known.update(own.values())
                covered.update((child, key) for child, key in _owners(layer, own))
            refused.update(full for key, full in direct.items() if (layer, key) not in covered)
        # A weight shared between a known and an unknown layer would be summed over the known one alone.
        self.unknown = [name for name in ledger.places if name not in known or name in refused]
        self._drop(set(self.unknown))
        self.bytes = 0
        self.axes: dict[str, int] = {}

    def forget(self, parameters: Sequence[str]) -> None:
        """Leaves these parameters to another engine from now on."""
        self.unknown += [name for name in parameters if name not in self.unknown]
        self._drop(set(parameters))

    def _drop(self, parameters: set[str]) -> None:
        for name, (layer, rule, own) in list(self.rules.items()):
            left = {key: full for key, full in own.items() if full not in parameters}
            if left:
                self.rules[name] = layer, rule, left
            else:
                del self.rules[name]

    def __call__(
        self,
        n: int,
        forward: Callable[[], tuple[list[Tensor], Any]],
        autocast: Callable[[], Any],
        collect: Callable[[], None],
    ) -> tuple[list[Tensor], Any, Mapping[str, Tensor]]:
        """(observables (n,) each, whatever else `forward` gives, pooled activations).

        `forward` runs the network once and returns one or several observables of all samples; `collect` is called when
        the contributions of each are in the ledger, which begins a new page for the next.
        """
        self.ledger.begin(n)
        self.bytes = 0
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(without_weight_gradients(self.module))
            activations: Mapping[str, Tensor] = {}
            if self.pooled:
                activations = stack.enter_context(pooled_activations(self.module, n, self.axes))
            token = torch.zeros((), requires_grad=True)
            self._hook(stack, token)
            with autocast():
                values, more = forward()
            for i, value in enumerate(values):
                if i:
                    self.ledger.begin(n)
                if value.requires_grad:
                    # Not autograd.grad: reentrant checkpointing refuses it. Only the token is there to accumulate.
                    value.sum().backward(retain_graph=i + 1 < len(values))
                collect()
            return [value.detach() for value in values], more, activations

    def _hook(self, stack: ExitStack, token: Tensor) -> None:
        def attach(layer: nn.Module, rule: LayerRule, names: dict[str, str], axis: int) -> None:
            detached: list[Tensor] = []

            def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
                if not torch.is_grad_enabled() or not inputs:
                    return None
                detached.append(inputs[0])
                return inputs[0].detach(), *inputs[1:]

            def after(_: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
                # Checkpointing runs layers without gradients first; calls count where the graph is built.
                if not torch.is_grad_enabled():
                    return None
                out = output if isinstance(output, Tensor) else output[0]
                self.bytes += out.numel() * out.element_size()
                own = detached.pop() if detached else None
                leaves, structure = tree_flatten((inputs, kwargs))
                tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
                tensors = tensors if rule.all_arguments else tensors[:1]
                kept = [leaves[i].detach() for i in tensors] if own is None else [own]

                def consume(d: Tensor, saved: tuple[Tensor, ...]) -> Tensor | None:
                    through = own is not None and own.requires_grad
                    arguments = ((), {})
                    if rule.all_arguments:
                        # The same tensor twice stays the same object: attention asks whether query is key.
                        same = {id(leaves[i]): tensor for i, tensor in zip(tensors, saved, strict=True)}
                        filled = [same.get(id(leaf), leaf) for leaf in leaves]
                        arguments = tree_unflatten(filled, structure)
                    if axis and not rule.all_arguments:
                        d, saved = d.movedim(axis, 0), tuple(leaf.movedim(axis, 0) for leaf in saved)
                    try:
                        return rule.rule(Call(layer, names, saved, d, through, arguments), self.ledger)
                    except (RuntimeError, ValueError) as problem:
                        if "out of memory" in str(problem).lower():
                            raise
                        raise RuleFailed(list(names.values()), problem) from problem

                # Marking a view as changed in place would drag its base along, and what an unknown layer returns may
                # be something it keeps.
                out = out.clone() if rule is LEAF_RULE or (out._is_view() and not out.requires_grad) else out
                tapped = Tap.apply(out, token, consume, *kept)
                return tapped if isinstance(output, Tensor) else (tapped, *output[1:])

            if rule.own_backward:
                stack.callback(layer.register_forward_pre_hook(before).remove)
            stack.callback(layer.register_forward_hook(after, with_kwargs=True).remove)

        for name, (layer, rule, names) in self.rules.items():
            attach(layer, rule, names, self.axes.get(name, 0))


def _owners(layer: nn.Module, keys: Iterable[str]) -> Iterator[tuple[nn.Module, str]]:
    for key in keys:
        path, _, own = key.rpartition(".")
        yield layer.get_submodule(path), own


@contextmanager
def without_weight_gradients(module: nn.Module) -> Iterator[None]:
    """Parameters require no gradient inside; afterwards each is as it was. Fused attention kernels that bypass
    hooks are off inside."""
    moved = [parameter for parameter in module.parameters() if parameter.requires_grad]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for parameter in moved:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in moved:
            parameter.requires_grad_(True)
        torch.backends.mha.set_fastpath_enabled(fast)
