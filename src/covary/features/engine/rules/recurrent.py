"""nn.LSTM, nn.GRU and nn.RNN: the recurrence is run again step by step, with every pre-activation at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from covary.features.engine.accumulator import GradientAccumulator
from covary.features.engine.calls import Call
from covary.features.engine.rules.leaf import leaf_rule
from covary.features.engine.rules.linear import product

# What went into one weight, and what it gave, at every step: both lists of (rows, width).
Products = dict[tuple[str, str], tuple[list[Tensor], list[Tensor]]]


def between_layers_alike(layer: Any) -> bool:
    """Whether no dropout acts between the layers."""
    return not layer.training or layer.dropout == 0


def recurrent_rule(call: Call, ledger: GradientAccumulator) -> None:
    """All layers and directions, from the gradients of the outputs and of the last states (Werbos 1990)."""
    layer: Any = call.layer
    names = ("input", "hx")
    arguments = {**dict(zip(names, call.arguments[0], strict=False)), **call.arguments[1]}
    x = arguments["input"]
    if not isinstance(x, Tensor):
        leaf_rule(call, ledger)  # packed sequences
        return
    alone = x.ndim == 2
    x = x.unsqueeze(1) if alone else x.transpose(0, 1) if layer.batch_first else x
    first = arguments.get("hx")
    states: list[Tensor | None] = [None, None]
    if first is not None:
        states = [leaf.unsqueeze(1) if alone else leaf for leaf in (first if isinstance(first, tuple) else (first,))]
    seen: Products = {}
    with torch.enable_grad():
        outputs = _run(layer, x, states, seen)
        ds = []
        for output, d in zip(outputs, call.ds, strict=False):
            if d is not None and alone:
                d = d.unsqueeze(1)
            elif d is not None and output is outputs[0] and layer.batch_first:
                d = d.transpose(0, 1)
            ds.append(torch.zeros_like(output) if d is None else d.to(output))
        sums = [total for _, totals in seen.values() for total in totals]
        found = iter(torch.autograd.grad(outputs[: len(ds)], sums, ds, allow_unused=True))
    for (weight, bias), (inputs, totals) in seen.items():
        own = [torch.zeros_like(total) if g is None else g for total, g in zip(totals, found, strict=False)]
        d = torch.stack(own, 1)
        a = torch.stack([leaf.detach() for leaf in inputs], 1)
        part = {name: call.names[key] for name, key in (("weight", weight), ("bias", bias)) if key in call.names}
        if part:
            by_sample = (call.fold(leaf, 0).flatten(1, 2) for leaf in (d, a))
            product(Call(layer, part, (), call.ds, call.n), ledger, *by_sample)


def _run(layer: Any, x: Tensor, first: list[Tensor | None], seen: Products) -> list[Tensor]:
    """Outputs (T, rows, D H), last h and, of an LSTM, last c; every weight's inputs and sums go into `seen`."""
    hidden, cells = [], []
    sequence = list(x.detach().unbind(0))
    directions = 2 if layer.bidirectional else 1
    for depth in range(layer.num_layers):
        both = []
        for direction in range(directions):
            at = depth * directions + direction
            steps = sequence[::-1] if direction else sequence
            outputs, h, c = _one_way(layer, f"_l{depth}" + ("_reverse" if direction else ""), steps, first, at, seen)
            both.append(outputs[::-1] if direction else outputs)
            hidden.append(h)
            cells.append(c)
        sequence = [torch.cat(parts, -1) for parts in zip(*both, strict=True)] if directions == 2 else both[0]
    states = [torch.stack(hidden)] if layer.mode != "LSTM" else [torch.stack(hidden), torch.stack(cells)]
    return [torch.stack(sequence), *states]


def _one_way(
    layer: Any, suffix: str, steps: list[Tensor], first: list[Tensor | None], at: int, seen: Products
) -> tuple[list[Tensor], Tensor, Tensor]:
    def times(kind: str, a: Tensor) -> Tensor:
        weight, bias = f"weight_{kind}{suffix}", f"bias_{kind}{suffix}"
        b = getattr(layer, bias, None)
        total = F.linear(a, getattr(layer, weight).detach(), None if b is None else b.detach())
        if not total.requires_grad:
            total.requires_grad_(True)
        inputs, totals = seen.setdefault((weight, bias), ([], []))
        inputs.append(a)
        totals.append(total)
        return total

    rows = len(steps[0])
    state = [None if leaf is None else leaf[at].detach() for leaf in first]
    h = steps[0].new_zeros(rows, layer.proj_size or layer.hidden_size) if state[0] is None else state[0]
    c = steps[0].new_zeros(rows, layer.hidden_size) if len(state) < 2 or state[1] is None else state[1]
    outputs = []
    for x in steps:
        h, c = _CELLS[layer.mode](times("ih", x), times("hh", h), h, c)
        if layer.proj_size:
            h = times("hr", h)
        outputs.append(h)
    return outputs, h, c


def _lstm(x: Tensor, h: Tensor, _: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, before: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    (rx, zx, nx), (rh, zh, nh) = x.chunk(3, -1), h.chunk(3, -1)
    z = (zx + zh).sigmoid()
    return (1 - z) * (nx + (rx + rh).sigmoid() * nh).tanh() + z * before, c


_CELLS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": lambda x, h, _, c: ((x + h).tanh(), c),
    "RNN_RELU": lambda x, h, _, c: ((x + h).relu(), c),
}
