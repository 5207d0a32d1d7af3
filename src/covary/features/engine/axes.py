"""Where the samples are in every layer: found by running few of them, and by exchanging one for another.

A layer's rows that change when sample i is exchanged are those of sample i. Networks that fold windows, views or frames
into the dimension of the samples are read so, without a guess; where a row changes with two samples, the network mixes
them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from covary.features.activations import first_tensor
from covary.features.engine.hooks import HookedPass
from covary.features.engine.rules.leaf import output_tensors
from covary.features.engine.rules.operations import Used, watched_forward, watching
from covary.features.engine.taps import Places, operation_of
from covary.features.layouts import Layout

# A tensor's place in the network: layer, call, "in" or "out", position.
Key = tuple[str, int, str, int]
# What is told of every tensor of a pass.
Seen = Callable[[Key, Tensor], None]
OUTPUT = "the output"


@dataclass
class Found:
    """What running few samples told.

    Attributes:
        places: by layer, where the samples are in every call.
        mixed: layers whose rows belong to no single sample, or that not every pass reached alike.
        shared: layers that give the same for all samples at once.
    """

    places: dict[str, list[Places]] = field(default_factory=dict)
    mixed: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)


def two_that_differ(x: Any) -> tuple[int, int] | None:
    """Positions of two samples of a batch that are not the same; None where there are none."""
    leaves = [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]
    for other in range(1, len(leaves[0])):
        if any(not torch.equal(leaf[0], leaf[other]) for leaf in leaves):
            return 0, other
    return None


def take(x: Any, positions: list[int]) -> Any:
    """These samples of a batch, in this order."""
    return tree_map(lambda leaf: leaf[torch.tensor(positions, device=leaf.device)], x)


def find_places(
    hooked: HookedPass, layers: Mapping[str, nn.Module], x: Any, pair: tuple[int, int], forward: Callable[[Any], Tensor]
) -> Found:
    """Where the samples are in the outputs of all `layers` and in all that the rules of `hooked` use.

    `forward` gives the network's logits or observables. Four passes over two or three samples of the pair a, b:
    (a, b) tells which dimension grows, (b, b, a) and (a, b, b) against (a, b, a) whose rows are whose.
    """
    a, b = pair
    sites = _Sites(hooked, layers)
    small: dict[Key, tuple[int, ...]] = {}
    sites.run(lambda key, tensor: small.__setitem__(key, tuple(tensor.shape)), take(x, [a, b]), forward)
    base: dict[Key, Tensor] = {}
    sites.run(lambda key, tensor: base.__setitem__(key, tensor.detach().clone()), take(x, [a, b, a]), forward)
    axes = {key: _grows(small[key], tuple(tensor.shape)) for key, tensor in base.items() if key in small}
    changed: list[dict[Key, Tensor]] = []
    for order in ([b, b, a], [a, b, b]):
        own: dict[Key, Tensor] = {}

        def compare(key: Key, tensor: Tensor, own: dict[Key, Tensor] = own) -> None:
            before = base.get(key)
            if before is not None and before.shape == tensor.shape:
                own[key] = _changed(before, tensor.detach(), axes.get(key))

        sites.run(compare, take(x, order), forward)
        changed.append(own)
    return _read(small, base, axes, changed)


def _grows(two: tuple[int, ...], three: tuple[int, ...]) -> int | None:
    """The dimension that is proportional to the number of samples; -1 where none grows, None where it is not clear."""
    if len(two) != len(three):
        return None
    other = [axis for axis, (p, q) in enumerate(zip(two, three, strict=True)) if p != q]
    if not other:
        return -1
    return other[0] if len(other) == 1 and 3 * two[other[0]] == 2 * three[other[0]] else None


def _changed(before: Tensor, after: Tensor, axis: int | None) -> Tensor:
    """By position along the dimension, whether anything there changed; along none, whether anything did."""
    other = (before != after) & ~((before != before) & (after != after))  # NaN stays NaN
    if axis is None or axis < 0:
        return other.any()
    return other.movedim(axis, 0).flatten(1).any(1) if other.ndim > 1 else other


def _read(
    small: Mapping[Key, Any], base: Mapping[Key, Tensor], axes: Mapping[Key, int | None],
    changed: list[dict[Key, Tensor]],
) -> Found:  # fmt: skip
    options: dict[Key, list[Layout] | None] = {}
    for key in {**dict.fromkeys(small), **dict.fromkeys(base), **dict.fromkeys(changed[0])}:
        rows = [own.get(key) for own in changed]
        axis = axes.get(key)
        if key not in base or any(row is None for row in rows) or axis is None:
            options[key] = []
        elif axis == -1:
            options[key] = [] if any(bool(row.any()) for row in rows if row is not None) else None
        else:
            own = [set(torch.nonzero(row).flatten().tolist()) for row in rows if row is not None]
            options[key] = list(_layouts(axis, base[key].shape[axis] // 3, own))
    # Where too little changed to tell, as everywhere else.
    sure = Counter((o[0].outer, o[0].inner) for o in options.values() if o and len(o) == 1)
    found = Found()
    calls: dict[str, dict[int, dict[tuple[str, int], Layout | None]]] = {}
    for (name, call, side, position), some in options.items():
        if some is not None and not some:
            found.mixed.append(name)
            continue
        layout = None if some is None else max(some, key=lambda o: sure[o.outer, o.inner])
        calls.setdefault(name, {}).setdefault(call, {})[side, position] = layout
    found.mixed = list(dict.fromkeys(found.mixed))
    for name, by_call in calls.items():
        if name not in found.mixed:
            found.places[name] = [_places(own) for _, own in sorted(by_call.items())]
    found.shared = [
        name for name, own in found.places.items() if any(call.outputs and call.outputs[0] is None for call in own)
    ]
    return found


def _layouts(axis: int, each: int, own: list[set[int]]) -> Iterator[Layout]:
    """Ways to fold `each` rows a sample, three samples, under which the changed rows are the exchanged sample's."""
    for outer in sorted((o for o in range(1, each + 1) if each % o == 0), key=lambda o: (min(o, each // o), o)):
        inner = each // outer
        first, last = ({(o * 3 + sample) * inner + i for o in range(outer) for i in range(inner)} for sample in (0, 2))
        if own[0] <= first and own[1] <= last:
            yield Layout(axis, outer, inner)


def _places(own: Mapping[tuple[str, int], Layout | None]) -> Places:
    def side(name: str) -> tuple[Layout | None, ...]:
        count = max((position + 1 for s, position in own if s == name), default=0)
        return tuple(own.get((name, position)) for position in range(count))

    return Places(side("in"), side("out"))


class _Sites:
    """Hooks on all that is to be looked at; what is seen of a pass goes to one function."""

    def __init__(self, hooked: HookedPass, layers: Mapping[str, nn.Module]) -> None:
        self.hooked = hooked
        self.layers = {**layers, **{name: layer for name, (layer, _, _) in hooked.rules.items()}}
        self.all_arguments = {name for name, (_, rule, _) in hooked.rules.items() if rule.all_arguments}

    def run(self, see: Seen, x: Any, forward: Callable[[Any], Tensor]) -> None:
        """One pass; `see` gets every tensor as it is at that moment."""
        calls: Counter[str] = Counter()
        with ExitStack() as stack:
            # With gradients, because checkpointed layers warn without.
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self.hooked.expand(len(tree_leaves(x)[0])))
            for name, layer in self.layers.items():
                look = partial(self._look, see, calls, name)
                stack.callback(layer.register_forward_hook(look, with_kwargs=True).remove)
            for name, (layer, own) in self.hooked.operated.items():
                visit = partial(self._visit, see, calls, operation_of(name))
                stack.enter_context(watched_forward(layer, watching(layer, own, visit)))
            see((OUTPUT, 0, "out", 0), forward(x))

    def _look(
        self, see: Seen, calls: Counter[str], name: str, _: nn.Module, inputs: Any, kwargs: Any, output: Any
    ) -> None:
        call = calls[name]
        calls[name] += 1
        if name in self.all_arguments:
            for i, leaf in enumerate(tree_leaves((inputs, kwargs))):
                if isinstance(leaf, Tensor):
                    see((name, call, "in", i), leaf)
        outputs = output_tensors(output) if name in self.all_arguments else [first_tensor(output)]
        for i, leaf in enumerate(outputs):
            see((name, call, "out", i), leaf)

    def _visit(self, see: Seen, calls: Counter[str], name: str, _: Used, output: Tensor) -> Tensor:
        see((name, calls[name], "out", 0), output)
        calls[name] += 1
        return output
