"""Parameter spaces: which weights may move, grouped into layers."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

from torch import nn

from covary.errors import CovaryError

ROOT = "(root)"


def _all(names: Sequence[str], _: str) -> list[str]:
    return list(names)


def _last_layer(names: Sequence[str], _: str) -> list[str]:
    last = layer_of(names[-1])
    return [name for name in names if layer_of(name) == last]


def _modules(names: Sequence[str], choice: str) -> list[str]:
    prefixes = [prefix.strip() for prefix in choice.split(",") if prefix.strip()]
    return [name for name in names if any(name == p or name.startswith(f"{p}.") for p in prefixes)]


def _pattern(names: Sequence[str], choice: str) -> list[str]:
    return [name for name in names if fnmatch.fnmatchcase(name, choice)]


# name -> selection among trainable parameter names; `modules:a,b` and `pattern:*attn*` carry an argument.
SPACES: dict[str, Callable[[Sequence[str], str], list[str]]] = {
    "all": _all,
    "last-layer": _last_layer,
    "modules": _modules,
    "pattern": _pattern,
}


def layer_of(parameter: str) -> str:
    """The module that owns a parameter: weight and bias of one module are one layer, and so is what makes a weight."""
    owner, parametrised, _ = f".{parameter}".partition(".parametrizations.")
    return (owner[1:] if parametrised else parameter.rpartition(".")[0]) or ROOT


def complex_parameters(module: nn.Module) -> list[str]:
    """Trainable parameters of complex numbers, which no space holds."""
    return [name for name, p in module.named_parameters() if p.is_complex() and p.requires_grad]


def select_parameters(module: nn.Module, space: str = "all") -> dict[str, list[str]]:
    """Trainable parameters of a space, by layer, in the module's own order.

    `space` is `all`, `last-layer` (the last registered module that owns parameters), `modules:NAME[,NAME...]` or
    `pattern:GLOB` over parameter names. Shared weights appear once, under their first name.

    Raises:
        CovaryError: an unknown space, or one that selects nothing.
    """
    kind, _, argument = space.partition(":")
    if kind not in SPACES or (kind in ("modules", "pattern")) != bool(argument):
        raise CovaryError(
            f"unknown parameter space {space!r}", "all, last-layer, modules:NAME[,NAME...] or pattern:GLOB"
        )
    parameters = {name: p.requires_grad for name, p in module.named_parameters() if p.is_floating_point()}
    # A network frozen as a whole was frozen for serving: all of it was trained.
    trainable = [name for name, trains in parameters.items() if trains] or list(parameters)
    if not trainable:
        raise CovaryError("the network has no parameters", "at least one weight that can move")
    layers: dict[str, list[str]] = {}
    for name in SPACES[kind](trainable, argument):
        layers.setdefault(layer_of(name), []).append(name)
    if not layers:
        some = ", ".join(dict.fromkeys(layer_of(name) for name in trainable))
        raise CovaryError(f"parameter space {space!r} selects nothing", "a name among the network's layers", some[:400])
    return layers
