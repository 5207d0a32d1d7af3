"""Known operations on a layer's own weights, whatever its class: found by what its forward calls.

A subclass of `Conv2d` that pads its input, a normalisation that moves channels to the end and back, a module of one's
own that calls `F.linear`: the operation is served by the rule of the layer that usually calls it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from covary.features.engine.calls import Rule
from covary.features.engine.rules.convolution import convolution_rule
from covary.features.engine.rules.embedding import embedding_rule
from covary.features.engine.rules.linear import linear_rule
from covary.features.engine.rules.normalisation import group_norm_rule, layer_norm_rule, rms_norm_rule


class Operation(NamedTuple):
    """How a function of tensors is read.

    Attributes:
        rule: of the layer that usually calls it.
        signature: names of its arguments in order; `input`, `weight` and `bias` are among them.
        geometry: what the rule asks of a layer, from the arguments; None where the rule does not cover them.
    """

    rule: Rule
    signature: tuple[str, ...]
    geometry: Callable[[dict[str, Any]], SimpleNamespace | None]


class Used(NamedTuple):
    """One call of an operation: its rule, the layer it stands for, its input, and own names of the weights it used."""

    rule: Rule
    layer: SimpleNamespace
    input: Tensor
    names: dict[str, str]


def _each(value: Any, dimensions: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * dimensions


def _convolution(dimensions: int) -> Callable[[dict[str, Any]], SimpleNamespace | None]:
    def geometry(a: dict[str, Any]) -> SimpleNamespace:
        kernel = tuple(a["weight"].shape[2:])
        dilation, padding = _each(a.get("dilation", 1), dimensions), a.get("padding", 0)
        if isinstance(padding, str):
            gaps = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
            around = [side for gap in reversed(gaps) for side in (gap // 2, gap - gap // 2)]
        else:
            padding = _each(padding, dimensions)
            around = [side for p in reversed(padding) for side in (p, p)]
        return SimpleNamespace(
            kernel_size=kernel, stride=_each(a.get("stride", 1), dimensions), padding=padding, dilation=dilation,
            groups=a.get("groups", 1), padding_mode="zeros", _reversed_padding_repeated_twice=around,
            weight=a["weight"],
        )  # fmt: skip

    return geometry


def _embedding(a: dict[str, Any]) -> SimpleNamespace | None:
    if a.get("max_norm") is not None or a.get("scale_grad_by_freq"):
        return None
    rows, width = a["weight"].shape
    padding = a.get("padding_idx")
    padding = padding if padding is None or padding >= 0 else rows + padding
    return SimpleNamespace(padding_idx=padding, num_embeddings=rows, embedding_dim=width)


def _last(a: dict[str, Any]) -> SimpleNamespace:
    eps = a.get("eps")
    return SimpleNamespace(normalized_shape=tuple(a["normalized_shape"]), eps=1e-5 if eps is None else eps)


def _rms(a: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(normalized_shape=tuple(a["normalized_shape"]), eps=a.get("eps"))


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
OPERATIONS: dict[Callable[..., Any], Operation] = {
    F.linear: Operation(linear_rule, ("input", "weight", "bias"), lambda _: SimpleNamespace()),
    torch.conv1d: Operation(convolution_rule, _CONVOLUTION, _convolution(1)),
    torch.conv2d: Operation(convolution_rule, _CONVOLUTION, _convolution(2)),
    torch.conv3d: Operation(convolution_rule, _CONVOLUTION, _convolution(3)),
    F.embedding: Operation(embedding_rule, tuple(inspect.signature(F.embedding).parameters), _embedding),
    F.layer_norm: Operation(layer_norm_rule, ("input", "normalized_shape", "weight", "bias", "eps"), _last),
    F.rms_norm: Operation(rms_norm_rule, ("input", "normalized_shape", "weight", "eps"), _rms),
    F.group_norm: Operation(
        group_norm_rule, ("input", "num_groups", "weight", "bias", "eps"),
        lambda a: SimpleNamespace(num_groups=a["num_groups"], eps=a.get("eps", 1e-5)),
    ),
}  # fmt: skip


class Watch(TorchFunctionMode):
    """Hands every known operation on the given weights, and its output, to `visit`; `missed` names other uses."""

    def __init__(self, own: Mapping[int, str], visit: Callable[[Used, Tensor], Tensor], missed: set[str]) -> None:
        super().__init__()
        self.own, self.visit, self.missed = own, visit, missed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        mine = {self.own[id(leaf)] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.own}
        if not mine or not any(isinstance(leaf, Tensor) and id(leaf) not in self.own for leaf in tree_leaves(output)):
            return output
        used = self._read(func, args, kwargs)
        if used is None or set(used.names.values()) != mine or not isinstance(output, Tensor):
            self.missed.update(mine)
            return output
        return self.visit(used, output)

    def _read(self, func: Any, args: Any, kwargs: Any) -> Used | None:
        operation = OPERATIONS.get(func)
        if operation is None or len(args) > len(operation.signature):
            return None
        arguments = {**dict(zip(operation.signature, args, strict=False)), **kwargs}
        names = {key: self.own[id(arguments[key])] for key in ("weight", "bias") if id(arguments.get(key)) in self.own}
        if not isinstance(arguments.get("input"), Tensor) or arguments.get("weight") is None:
            return None
        layer = operation.geometry(arguments)
        return None if layer is None else Used(operation.rule, layer, arguments["input"], names)


def watching(
    layer: nn.Module, own: Mapping[str, str], visit: Callable[[Used, Tensor], Tensor], missed: set[str] | None = None
) -> Callable[[], Watch]:
    """Makes a mode that watches a layer's own weights, by the layer's names for them."""

    def make() -> Watch:
        # Weights that come from disk are other objects in every pass.
        ids = {id(layer._parameters[key]): full for key, full in own.items()}
        return Watch(ids, visit, set() if missed is None else missed)

    return make


@contextmanager
def watched_forward(layer: nn.Module, mode: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """A layer's forward runs under a mode of its own, in whichever thread calls it."""
    inner, had = layer.forward, layer.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        with mode():
            return inner(*args, **kwargs)

    layer.__dict__["forward"] = forward
    try:
        yield
    finally:
        del layer.__dict__["forward"]
        if had is not None:
            layer.__dict__["forward"] = had
