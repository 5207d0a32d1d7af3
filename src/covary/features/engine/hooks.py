"""The pass itself: hooks on the known layers, one backward over activations, weights never differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from covary.features.activations import pooled_activations
from covary.features.engine import LAYER_RULES, LEAF_RULE, LayerRule
from covary.features.engine.accumulator import GradientAccumulator
from covary.features.engine.rules.operations import Used, watched_forward, watching
from covary.features.engine.taps import LayerTap, OperationTap, Places, Taps, looked_up_per_sample


class HookedPass:
    """Runs a network once forward and once backward and fills a ledger with the known layers' compressed gradients.

    Args:
        module: the network; left as it was after every pass.
        ledger: where contributions go; its places say which parameters are wanted.
        pooled: whether activations are pooled along the way.

    Attributes:
        rules: by layer name, the layer, its rule and the parameters it sees to.
        operated: by layer name, the layer and the parameters whose operations are served one by one.
        places: by layer name (or `operation_of` it), where the samples are in every call; None before they were found.
        shared: embeddings that all samples share, looked up once a sample instead; the values are the same.
        bytes: size of the hooked layers' outputs in the last pass.
        unknown: parameters that no hook sees to.
    """

    def __init__(self, module: nn.Module, ledger: GradientAccumulator, pooled: bool = True) -> None:
        self.module, self.ledger, self.pooled = module, ledger, pooled
        self.device = next((p.device for p in module.parameters() if not p.is_meta), None)
        self.operated: dict[str, tuple[nn.Module, dict[str, str]]] = {}
        self.places: dict[str, list[Places]] | None = None
        self.shared: set[str] = set()
        self.bytes = 0
        self._forgotten: list[str] = []
        self._select()

    def _direct(self, layer: nn.Module) -> dict[str, str]:
        direct = {key: self._first[id(p)] for key, p in layer.named_parameters(recurse=False)}
        return {key: full for key, full in direct.items() if full in self.ledger.places}

    def _select(self) -> None:
        """Rules by type, or by the operations found; what neither sees to, wherever it is used, is unknown."""
        # Anew each time: weights that come from disk are other objects in every pass.
        self._first = {id(parameter): name for name, parameter in self.module.named_parameters()}
        self.rules: dict[str, tuple[nn.Module, LayerRule, dict[str, str]]] = {}
        known: set[str] = set()
        covered: set[tuple[nn.Module, str]] = set()
        refused: set[str] = set()
        for name, layer in self.module.named_modules():
            direct = self._direct(layer)
            if direct and all((layer, key) in covered for key in direct):
                continue  # part of a layer that has a rule
            rule = LAYER_RULES.get(type(layer), LEAF_RULE)
            inside = {key: self._first[id(p)] for key, p in layer.named_parameters()}
            parametrised = parametrize.is_parametrized(layer)
            keys = rule.parameters or (inside if parametrised else direct)
            own = {key: inside[key] for key in keys if inside.get(key) in self.ledger.places}
            if name in self.operated:
                served = set(self.operated[name][1].values())
                known.update(served)
                covered.update((layer, key) for key, full in direct.items() if full in served)
            elif own and rule.holds(layer) and set(direct) <= set(own):
                self.rules[name] = layer, rule, own
                known.update(own.values())
                covered.update((child, key) for child, key in _owners(layer, own))
            refused.update(full for key, full in direct.items() if (layer, key) not in covered)
        # A weight shared between a known and an unknown layer would be summed over the known one alone.
        self.unknown = [name for name in self.ledger.places if name not in known or name in refused]
        self.unknown += [name for name in self._forgotten if name not in self.unknown]
        for name, (layer, rule, own) in list(self.rules.items()):
            left = {key: full for key, full in own.items() if full not in self.unknown}
            self.rules[name] = layer, rule, left
            if not left:
                del self.rules[name]

    def forget(self, parameters: Sequence[str]) -> None:
        """Leaves these parameters to another engine from now on."""
        self._forgotten += [name for name in parameters if name not in self._forgotten]
        self._select()

    def parameters_of(self, names: Iterable[str]) -> list[str]:
        """Parameters that the layers or operations of these names see to."""
        found: list[str] = []
        for name in names:
            layer = name.removesuffix("()")
            if name in self.rules:
                found += self.rules[name][2].values()
            elif layer != name and layer in self.operated:
                found += self.operated[layer][1].values()
        return list(dict.fromkeys(found))

    def find_operations(self, forward: Callable[[], Any]) -> None:
        """Looks which layers without a rule of their own call known operations on their weights, and nothing else."""
        candidates = {
            name: (layer, self._direct(layer))
            for name, layer in self.module.named_modules()
            if type(layer) not in LAYER_RULES and self._direct(layer) and not parametrize.is_parametrized(layer)
        }
        if not candidates:
            return
        used: set[str] = set()
        missed: set[str] = set()

        def visit(call: Used, output: Tensor) -> Tensor:
            used.update(call.names.values())
            return output

        with ExitStack() as stack:
            for layer, own in candidates.values():
                stack.enter_context(watched_forward(layer, watching(layer, own, visit, missed)))
            forward()
        for name, (layer, own) in candidates.items():
            served = {key: full for key, full in own.items() if full in used and full not in missed}
            # A layer on its own has a rule for all of its weights or none.
            if served and (len(served) == len(own) or not LEAF_RULE.holds(layer)):
                self.operated[name] = layer, served
        self._select()

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
        self.ledger.begin(n, self.device)
        self.bytes = 0
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(without_weight_gradients(self.module))
            taps = Taps(self.ledger, torch.zeros((), requires_grad=True), n, self.places)
            self._hook(stack, taps)
            with autocast(), self.pooling(n) as activations:
                values, more = forward()
            for i, value in enumerate(values):
                if i:
                    self.ledger.begin(n, self.device)
                if value.requires_grad:
                    # Not autograd.grad: reentrant checkpointing refuses it. Only the token is there to accumulate.
                    value.sum().backward(retain_graph=i + 1 < len(values))
                collect()
            # Where activations are checkpointed, layers are tapped on the way back.
            self.bytes = taps.bytes
            return [value.detach() for value in values], more, activations

    @contextmanager
    def pooling(self, n: int) -> Iterator[dict[str, Tensor]]:
        """Pooled activations of the passes over n samples that run inside, from the places that were found."""
        if not self.pooled:
            yield {}
            return
        places = self.places or {}
        layouts = {name: [call.outputs[0] for call in calls] for name, calls in places.items()}
        with pooled_activations(self.module, n, layouts) as activations:
            yield activations

    def expand(self, n: int) -> ExitStack:
        """While open, what all samples share is looked up once a sample in the embeddings known to do so."""
        stack = ExitStack()
        look = partial(looked_up_per_sample, n)
        for name in self.shared:
            stack.callback(self.module.get_submodule(name).register_forward_pre_hook(look).remove)
        return stack

    def _hook(self, stack: ExitStack, taps: Taps) -> None:
        stack.enter_context(self.expand(taps.n))
        for name, (layer, rule, names) in self.rules.items():
            tap = LayerTap(taps, name, layer, rule, names)
            if rule.own_backward:
                stack.callback(layer.register_forward_pre_hook(tap.before).remove)
            stack.callback(layer.register_forward_hook(tap.after, with_kwargs=True).remove)
        for name, (layer, own) in self.operated.items():
            visit = OperationTap(taps, name, self.unknown)
            stack.enter_context(watched_forward(layer, watching(layer, own, visit)))


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
