"""The fast engine: known layers through hooks, the rest through `exact_gradients`, checked once against autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from covary.errors import CovaryError
from covary.features.activations import watched_layers
from covary.features.engine import LEAF_RULE
from covary.features.engine.accumulator import GradientAccumulator, PassTotals
from covary.features.engine.axes import sample_axes
from covary.features.engine.check import offloaded, wrong_layers
from covary.features.engine.hooks import HookedPass, RuleFailed
from covary.features.exact import ChooseLogits, exact_gradients
from covary.features.observables import Labels, Logits, UserObservable
from covary.features.projections import LayerProjection
from covary.models.spaces import layer_of

Observe = Callable[[Logits, Labels], Tensor]

# Samples in the first batch's check.
CHECKED = 4
# Whole gradients of the parameters that no rule knows may take this many bytes at once.
WHOLE_BYTES = 256 * 2**20

# Activations of one pass may take about this many bytes, at KEPT times the size of the hooked layers' outputs.
PASS_BYTES = {"cpu": 768 * 2**20, "gpu": 8 * 2**30}
KEPT = 2.0


@dataclass(frozen=True)
class Compressed:
    """Compressed gradients (n, k) and norms (n,) by layer, with what else the same pass gave."""

    rows: dict[str, Tensor]
    norms: dict[str, Tensor]
    observable: Tensor
    predicted: Tensor
    logits: Tensor | None
    activations: Mapping[str, Tensor]


class FastEngine:
    """Compressed gradients of a whole batch for about the price of a forward and an activation-only backward pass.

    Attributes:
        notes: in words, what went another way than by hooks.
        norm_kinds: per layer, `exact` or `projected` (the norm of the compressed row); settled by the first batch.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Mapping[str, Sequence[str]],
        projections: Mapping[str, LayerProjection],
        *,
        observable: Observe | None,
        choose_logits: ChooseLogits,
        user_observable: UserObservable | None,
        pooled: bool = True,
    ) -> None:
        # Weights made under inference_mode cannot be saved for a backward pass.
        module = copy.deepcopy(module) if any(p.is_inference() for p in module.parameters()) else module
        self.module, self.layers = module, layers
        self.observable, self.choose_logits, self.user_observable = observable, choose_logits, user_observable
        self.ledger = GradientAccumulator(layers, projections)
        self.hooked = HookedPass(module, self.ledger, pooled)
        self.notes: list[str] = []
        self._checked = False
        self._bytes_per_sample = 0.0
        self._note(self.hooked.unknown, "of a kind without a rule")

    @property
    def bytes_per_sample(self) -> float:
        """Bytes of the hooked layers' outputs per sample of the first batch; 0 before it."""
        return self._bytes_per_sample

    @property
    def norm_kinds(self) -> dict[str, str]:
        """`exact` or `projected` by layer; empty before the first batch."""
        return self.ledger.norm_kinds

    def __call__(self, x: Any, autocast: Callable[[], Any] = nullcontext) -> Compressed:
        """Compressed gradients of one batch."""
        return self.several(x, [self.observable], autocast)[0]

    def several(self, x: Any, observables: Sequence[Observe | None], autocast: Callable[[], Any]) -> list[Compressed]:
        """The same for several observables out of one forward pass, with a backward pass each."""
        with torch.inference_mode(False):
            x = tree_map(_own, x)
            self._check_once(x)
            return self._run(x, autocast, observables)

    def samples_at_once(self, x: Any) -> int:
        """How many samples fit one pass, by the bytes of activations that the first ones took."""
        with torch.inference_mode(False):
            x = tree_map(_own, x)
            self._check_once(x)
        room = PASS_BYTES["cpu" if tree_leaves(x)[0].device.type == "cpu" else "gpu"]
        return max(1, int(room // max(1.0, KEPT * self._bytes_per_sample)))

    def _check_once(self, x: Any) -> None:
        if not self._checked:
            self._check(tree_map(lambda leaf: leaf[:CHECKED], x))
            self._checked = True

    def _note(self, parameters: Sequence[str], why: str) -> None:
        if parameters:
            shown = ", ".join(parameters[:8]) + (f" and {len(parameters) - 8} more" if len(parameters) > 8 else "")
            self.notes.append(f"Exact gradients instead of the fast engine for parameters {why}: {shown}.")

    def _run(self, x: Any, autocast: Callable[[], Any], observables: Sequence[Observe | None]) -> list[Compressed]:
        n = len(tree_leaves(x)[0])
        pages: list[PassTotals] = []
        while True:
            try:
                values, (predicted, logits), activations = self.hooked(
                    n, lambda: self._forward(x, observables), autocast, lambda: pages.append(self.ledger.page)
                )
                break
            except RuleFailed as failed:
                pages.clear()
                self.hooked.forget(failed.parameters)
                self._note(failed.parameters, "called in a way their rule does not know")
        results = []
        # Unknown parameters take passes of their own, which must not meet the hooks of this one.
        for observable, page, value in zip(observables, pages, values, strict=True):
            self.ledger.page = page
            self._add_unknown(x, n, autocast, observable)
            both = {layer: self.ledger.rows(layer) for layer in self.layers}
            rows = {layer: pair[0].detach() for layer, pair in both.items()}
            norms = {layer: pair[1].detach() for layer, pair in both.items()}
            results.append(Compressed(rows, norms, value, predicted, logits, activations))
        self.ledger.begin(0)
        return results

    def _forward(
        self, x: Any, observables: Sequence[Observe | None], attached: bool = False
    ) -> tuple[list[Tensor], Any]:
        if self.user_observable is not None:
            held = {name: p if attached else p.detach() for name, p in self.module.named_parameters()}
            value = self.user_observable(held, dict(self.module.named_buffers()), x)
            return [value], (torch.zeros(len(value), dtype=torch.long, device=value.device), None)
        logits = self.choose_logits(self.module(x)).float()
        predicted = logits.detach().argmax(-1)
        values = [observe(logits, predicted) for observe in observables if observe is not None]
        return values, (predicted, logits.detach())

    def _one(self, x: Any, attached: bool = False) -> tuple[Tensor, Any]:
        values, more = self._forward(x, [self.observable], attached)
        return values[0], more

    def _add_unknown(self, x: Any, n: int, autocast: Callable[[], Any], observable: Observe | None) -> None:
        if not self.hooked.unknown:
            return
        every = dict(self.module.named_parameters())
        if away := [name for name in self.hooked.unknown if every[name].is_meta]:
            raise CovaryError(
                f"no fast rule knows {away[0]}, and its weights are offloaded",
                "weights on a device, or a space without them",
                f"pass --space, or keep {layer_of(away[0])} on a device",
            )
        size = sum(every[name].numel() for name in self.hooked.unknown)
        step = max(1, WHOLE_BYTES // (4 * size))
        parts: dict[str, list[Tensor]] = {name: [] for name in self.hooked.unknown}
        for start in range(0, n, step):
            some = tree_map(lambda leaf, s=start: leaf[s : s + step], x)
            for name, gradient in self._exact(some, autocast, observable).items():
                place = self.ledger.places[name]
                # One slice: kept whole, so that the norm is exact; several: compressed as they come.
                parts[name].append(gradient if step >= n else place.block.project(place.block.matrix({name: gradient})))
        for name, got in parts.items():
            place = self.ledger.places[name]
            if step >= n:
                self.ledger.add_whole(name, got[0])
            else:
                self.ledger.add_compressed(place, torch.cat(got).float())

    def _exact(self, x: Any, autocast: Callable[[], Any], observable: Observe | None) -> dict[str, Tensor]:
        def run(vectorised: bool) -> dict[str, Tensor]:
            with autocast():
                return exact_gradients(
                    self.module,
                    list(self.hooked.unknown),
                    x,
                    observable=observable,
                    choose_logits=self.choose_logits,
                    user_observable=self.user_observable,
                    vectorised=vectorised,
                ).parameters

        try:
            return run(True)
        except (RuntimeError, NotImplementedError) as problem:
            if "out of memory" in str(problem).lower():
                raise
            return run(False)

    def _check(self, x: Any) -> None:
        """Compares rows with autograd; a layer that disagrees is left to exact gradients, and noted."""
        hooked = {name: layer for name, (layer, _, _) in self.hooked.rules.items()}
        self.hooked.axes = sample_axes({**watched_layers(self.module), **hooked}, x, self._one)
        odd = [
            full
            for name, (_, rule, own) in self.hooked.rules.items()
            if self.hooked.axes.get(name) and (rule.own_backward or rule is LEAF_RULE)
            for full in own.values()
        ]
        self.hooked.forget(odd)
        self._note(odd, "of a kind without a rule for positions before samples")
        got = self._run(x, nullcontext, [self.observable])[0]
        self._bytes_per_sample = self.hooked.bytes / len(got.observable)
        self.ledger.norm_kinds.clear()
        weights = torch.tensor([1.0, -0.6, 1.7, 0.3])[: len(got.observable)]
        wrong = wrong_layers(
            self.module, self.ledger, got.rows, lambda: self._one(x, attached=True)[0], weights.to(got.observable)
        )
        if away := [name for name in offloaded(self.module) if name in self.ledger.places]:
            found = f"{away[0]} and {len(away) - 1} more" if len(away) > 1 else away[0]
            self.notes.append(f"Not checked against automatic differentiation, since offloaded: {found}.")
        names = [name for layer in wrong for name in self.layers[layer] if name not in self.hooked.unknown]
        self.hooked.forget(names)
        self._note(names, "whose fast gradients disagreed with automatic differentiation")


def _own(leaf: Any) -> Any:
    # Tensors made under inference_mode cannot be saved for a backward pass.
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf
