"""The fast engine: known layers through hooks, the rest through `exact_gradients`, checked against autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from covary.errors import CovaryError
from covary.features.activations import watched_layers, with_zeros
from covary.features.engine.accumulator import GradientAccumulator, PassTotals
from covary.features.engine.axes import find_places, take, two_that_differ
from covary.features.engine.check import offloaded, wrong_layers
from covary.features.engine.compressed import Compressed
from covary.features.engine.hooks import HookedPass
from covary.features.engine.rules.operations import watched_forward
from covary.features.engine.taps import RuleFailed
from covary.features.engine.values import ValueDependence
from covary.features.exact import ChooseLogits, exact_gradients, where_vmap_fails
from covary.features.layouts import Unsettled
from covary.features.observables import Labels, Logits, UserObservable
from covary.features.projections import LayerProjection
from covary.models.spaces import layer_of

Observe = Callable[[Logits, Labels], Tensor]

# Samples in the first batch's check.
CHECKED = 4
# Whole gradients of the parameters that no rule knows may take this many bytes at once.
FULL_GRADIENT_BYTES = 256 * 2**20

# Activations of one pass may take about this many bytes, at KEPT times the size of the hooked layers' outputs.
PASS_BYTES = {"cpu": 768 * 2**20, "gpu": 8 * 2**30}
KEPT = 2.0


class FastEngine:
    """Compressed gradients of a whole batch for about the price of a forward and an activation-only backward pass.

    What it gives of a sample does not depend on the batch around it. Where that cannot be had from one pass over the
    batch (samples meet in the network, or what it does depends on values), samples go one by one.

    Attributes:
        notes: in words, what went another way than by hooks.
        norm_kinds: per layer, `exact` or `projected` (the norm of the compressed row); settled by the first batch.
        one_by_one: whether every sample has a pass of its own.
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
        self.one_by_one = False
        self._watched = watched_layers(module) if pooled else {}
        self._settled, self._vectorised = False, True
        self._sizes: set[int] = set()
        self._bytes_per_sample = 0.0

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
            self._settle(x)
            results = self._run(x, autocast, observables)
            if self._depends_on_company(x, autocast, observables[0], results[0]):
                results = self._run(x, autocast, observables)
            return results

    def samples_at_once(self, x: Any) -> int:
        """How many samples fit one pass, by the bytes of activations that the first ones took."""
        with torch.inference_mode(False):
            x = tree_map(_own, x)
            self._settle(x)
        if self.one_by_one:
            return 1
        room = PASS_BYTES["cpu" if tree_leaves(x)[0].device.type == "cpu" else "gpu"]
        return max(1, int(room // max(1.0, KEPT * self._bytes_per_sample)))

    def _settle(self, x: Any) -> None:
        """Learns of the network what it must: from the first samples, and from the first two that differ.

        Rows are compared with autograd after either; a layer that disagrees is left to exact gradients, and noted.
        """
        new = not self._settled
        if new:
            self._learn(tree_map(lambda leaf: leaf[:2], x))
        if self.hooked.places is None and not self.one_by_one and (pair := two_that_differ(x)) is not None:
            self._find_places(x, pair)
            new = True
        if new:
            self._check(tree_map(lambda leaf: leaf[:CHECKED], x))
            self._settled = True

    def _learn(self, x: Any) -> None:
        self.hooked.find_operations(lambda: self._probe(x))
        self._note(self.hooked.unknown, "of a kind without a rule")
        found = ValueDependence(x)
        # Of the network alone: what is then made of its answer is covary's own.
        with watched_forward(self.module, lambda: found):
            self._probe(x)
        self.ledger.positions_vary = found.shapes
        if found.shapes or found.branches:
            what = "How much a layer is given" if found.shapes else "What the network does"
            self._go_one_by_one(f"{what} depends on the values of its inputs")

    def _find_places(self, x: Any, pair: tuple[int, int]) -> None:
        found = find_places(self.hooked, self._watched, x, pair, self._probe)
        rules = self.hooked.rules
        tables = {name for name in found.shared if name in rules and isinstance(rules[name][0], nn.Embedding)}
        if tables:
            self.hooked.shared |= tables
            found = find_places(self.hooked, self._watched, x, pair, self._probe)
        if found.mixed:
            self._refuse_chance(take(x, list(pair)))
            self._go_one_by_one(f"Samples of a batch meet in the network (at {some_of(found.mixed, 4)})")
            return
        self.hooked.places = found.places
        shared = self.hooked.parameters_of(found.shared)
        self.hooked.forget(shared)
        self._note(shared, "that act on what all samples share")

    def _refuse_chance(self, x: Any) -> None:
        if not torch.equal(self._probe(x), self._probe(x)):
            raise CovaryError(
                "the network answers one and the same input differently from pass to pass",
                "an answer without chance in it",
                "turn off what draws random numbers in evaluation mode, such as F.dropout without `self.training`",
            )

    def _depends_on_company(
        self, x: Any, autocast: Callable[[], Any], observable: Observe | None, got: Compressed
    ) -> bool:
        """Whether the first or the last sample of a batch differs from itself alone; asked once a size of batch."""
        n = len(got.observable)
        if n == 1 or n in self._sizes or self.one_by_one or self.hooked.places is None:
            return False
        self._sizes.add(n)
        half = autocast is not nullcontext or any(p.dtype.itemsize < 4 for p in self.module.parameters())
        odd: list[str] = []
        for i in (0, n - 1):
            try:
                alone = self._run(take(x, [i]), autocast, [observable])[0]
            except (RuntimeError, ValueError, IndexError):
                return False  # a network that takes no single sample
            odd += got.differs(alone, i, half)
        if odd:
            self._go_one_by_one(f"In a batch of {n} samples differ from the same alone (at {some_of(odd, 4)})")
        return bool(odd)

    def _go_one_by_one(self, why: str) -> None:
        self.one_by_one = True
        self.notes.append(f"{why}; samples go one by one.")

    def _note(self, parameters: Sequence[str], why: str) -> None:
        if parameters:
            listed = some_of(parameters, 8)
            self.notes.append(f"Exact gradients instead of the fast engine for parameters {why}: {listed}.")

    def _run(self, x: Any, autocast: Callable[[], Any], observables: Sequence[Observe | None]) -> list[Compressed]:
        """Compressed gradients of every observable: in one pass, or sample by sample where that is not the same."""
        n = len(tree_leaves(x)[0])
        if n > 1 and self.hooked.places is not None and not self.one_by_one:
            try:
                return self._pass(x, autocast, observables)
            except Unsettled as problem:
                # Longer texts or larger images may fold otherwise.
                pair, self.hooked.places = two_that_differ(x), None
                if pair is not None:
                    self._find_places(x, pair)
                if self.hooked.places is not None:
                    try:
                        return self._pass(x, autocast, observables)
                    except Unsettled:
                        self._go_one_by_one(f"Layers are not given the same of every batch ({problem})")
        if n == 1:
            return self._pass(x, autocast, observables)
        singles = [self._pass(take(x, [i]), autocast, observables) for i in range(n)]
        return [Compressed.concatenate(parts) for parts in zip(*singles, strict=True)]

    def _pass(self, x: Any, autocast: Callable[[], Any], observables: Sequence[Observe | None]) -> list[Compressed]:
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
        activations = with_zeros(activations, self._watched, n)
        results = []
        # Unknown parameters take passes of their own, which must not meet the hooks of this one.
        for observable, page, value in zip(observables, pages, values, strict=True):
            self.ledger.page = page
            self._add_unknown(x, n, autocast, observable)
            both = {layer: self.ledger.rows(layer) for layer in self.layers}
            rows = {layer: pair[0].detach() for layer, pair in both.items()}
            norms = {layer: pair[1].detach() for layer, pair in both.items()}
            results.append(Compressed(rows, norms, value, predicted, logits, activations))
        self.ledger.begin(0, self.hooked.device)
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

    def _probe(self, x: Any) -> Tensor:
        """Logits, or a user's observable, of a few samples whose pass is only looked at."""
        # With gradients, because checkpointed layers warn without.
        with torch.enable_grad():
            if self.user_observable is not None:
                return self._forward(x, [None])[0][0].detach()
            output = self.module(x)
        with torch.no_grad():
            return self.choose_logits(output)

    def _checked(self, x: Any) -> Tensor:
        """The observable of every sample, with gradients, each by the passes that its rows come from."""
        parts = [take(x, [i]) for i in range(len(tree_leaves(x)[0]))] if self.one_by_one else [x]
        return torch.cat([self._forward(part, [self.observable], attached=True)[0][0] for part in parts])

    def _add_unknown(self, x: Any, n: int, autocast: Callable[[], Any], observable: Observe | None) -> None:
        if not self.hooked.unknown:
            return
        every = dict(self.module.named_parameters())
        if away := [name for name in self.hooked.unknown if every[name].is_meta]:
            raise CovaryError(
                f"no fast rule knows {away[0]}, and its weights are offloaded",
                "weights on a device, or a space without them",
                f"pass space=, or keep {layer_of(away[0])} on a device",
            )
        size = sum(every[name].numel() for name in self.hooked.unknown)
        step = max(1, FULL_GRADIENT_BYTES // (4 * size))
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
                self.ledger.add_gradient(name, got[0])
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
                    pooled=False,
                ).parameters

        if not self._vectorised or len(tree_leaves(x)[0]) == 1:
            return run(False)
        result, problem = where_vmap_fails(run)
        self._vectorised = problem is None
        return result

    def _check(self, x: Any) -> None:
        """Compares rows with autograd; a layer that disagrees is left to exact gradients, and noted."""
        got = self._run(x, nullcontext, [self.observable])[0]
        self._bytes_per_sample = self.hooked.bytes / (1 if self._alone(x) else len(got.observable))
        self.ledger.norm_kinds.clear()
        weights = torch.tensor([1.0, -0.6, 1.7, 0.3])[: len(got.observable)]
        wrong = wrong_layers(self.module, self.ledger, got.rows, lambda: self._checked(x), weights.to(got.observable))
        names = [name for layer in wrong for name in self.layers[layer] if name not in self.hooked.unknown]
        self.hooked.forget(names)
        self._note(names, "whose fast gradients disagreed with automatic differentiation")
        if self._settled:
            return
        away = [name for name in offloaded(self.module) if name in self.ledger.places]
        if away:
            found = f"{away[0]} and {len(away) - 1} more" if len(away) > 1 else away[0]
            self.notes.append(f"Not checked against automatic differentiation, since offloaded: {found}.")
        still = [layer for layer in self.layers if layer not in wrong and not got.norms[layer].any()]
        if len(still) == len(self.layers) and not away:
            raise CovaryError(
                f"no gradient reaches the weights that may move ({some_of(still, 4)})",
                "an answer that depends on them, as autograd sees it",
                "take torch.no_grad() and detach() out of the network's forward, or choose another space=",
            )
        if still:
            self.notes.append(f"Rows of zeros, for no gradient reached them on the first inputs: {some_of(still, 8)}.")

    def _alone(self, x: Any) -> bool:
        return self.one_by_one or self.hooked.places is None or len(tree_leaves(x)[0]) == 1


def some_of(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _own(leaf: Any) -> Any:
    # Tensors made under inference_mode cannot be saved for a backward pass.
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf
