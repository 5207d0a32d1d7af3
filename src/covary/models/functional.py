"""A network as a function of its weights: (module, params, buffers), with the options that make it fast."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from covary.models.spaces import select_parameters

Params = dict[str, Tensor]
Buffers = dict[str, Tensor]


@dataclass(frozen=True)
class FunctionalNetwork:
    """A module whose weights are arguments.

    Attributes:
        module: the network; its mode is set before every call, its own weights are never written.
        moving: the parameters that may move, at w*, in the module's order.
        still: the others.
        buffers: running statistics and the like at w*.
        layers: names of moving parameters by layer.
        choose_logits: picks logits (n, C) out of what the module returns.
        autocast: None or a dtype such as torch.bfloat16 for the forward pass; weights and observables stay float32.
        compiled: run the evaluation forward pass through torch.compile.
        channels_last: memory format of four-dimensional inputs; on processors worth 2x for narrow networks.
    """

    module: nn.Module
    moving: Params
    still: Params
    buffers: Buffers
    layers: dict[str, list[str]]
    choose_logits: Callable[[Any], Tensor] = field(default=lambda out: out)
    autocast: torch.dtype | None = None
    compiled: bool = False
    channels_last: bool = False

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(iter(self.moving.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the weights, which inputs follow."""
        return next((p.dtype for p in self.moving.values() if p.is_floating_point()), torch.float32)

    def place(self, x: Tensor) -> Tensor:
        """Inputs where and how the network wants them."""
        x = x.to(self.device, self.dtype if x.is_floating_point() else x.dtype, non_blocking=True)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.ndim == 4 else x

    def _amp(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self.autocast) if self.autocast else nullcontext()

    def logits(self, moving: Params, buffers: Buffers, x: Tensor) -> Float[Tensor, "n C"]:
        """Logits in evaluation mode at those weights, float32."""
        self.module.eval()
        call = _compiled(self.module) if self.compiled else _call
        with torch.no_grad(), self._amp():
            out = call(self.module, {**self.still, **moving}, buffers, x)
        return self.choose_logits(out).float()

    def logits_of_draws(self, stacked: Params, buffers: Buffers, x: Tensor) -> Float[Tensor, "s n C"]:
        """Logits at several draws at once: every moving parameter carries a leading dimension of draws."""
        return vmap(lambda moving: self.logits(moving, buffers, x))(stacked)

    def gradient(
        self, moving: Params, buffers: Buffers, x: Tensor, y: Int[Tensor, " n"], batchnorm: str, dropout_seed: int
    ) -> tuple[Params, Buffers, Float[Tensor, ""], Float[Tensor, ""]]:
        """Gradient of the mean cross-entropy at true labels in training mode, new buffers, loss and accuracy.

        With `batchnorm="frozen"` normalisation layers stay in evaluation mode and the buffers come back unchanged.
        """
        self.module.train()
        if batchnorm == "frozen":
            for layer in self.module.modules():
                if isinstance(layer, nn.modules.batchnorm._NormBase):
                    layer.eval()
        # Training mode writes running statistics into the tensors it is given: give it copies.
        buffers = {name: value.clone() for name, value in buffers.items()}
        leaves = {name: value.detach().requires_grad_() for name, value in moving.items()}
        with torch.enable_grad(), self._amp(), _dropout_stream(self.device, dropout_seed):
            logits = self.choose_logits(_call(self.module, {**self.still, **leaves}, buffers, x)).float()
            loss = F.cross_entropy(logits, y)
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        self.module.eval()
        found = {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), gradients, strict=True)
        }
        return found, buffers, loss.detach(), (logits.detach().argmax(-1) == y).float().mean()


def functional_network(
    module: nn.Module,
    *,
    space: str = "all",
    choose_logits: Callable[[Any], Tensor] = lambda out: out,
    autocast: torch.dtype | None = None,
    compiled: bool = False,
    channels_last: bool = False,
) -> FunctionalNetwork:
    """The network at its present weights w*; `space` says which of them may move (see `covary.models.spaces`)."""
    layers = select_parameters(module, space)
    chosen = {name for names in layers.values() for name in names}
    every = {name: value.detach() for name, value in module.named_parameters()}
    if channels_last:
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return FunctionalNetwork(
        module.eval(),
        {name: value for name, value in every.items() if name in chosen},
        {name: value for name, value in every.items() if name not in chosen},
        {name: value.detach() for name, value in module.named_buffers()},
        layers,
        choose_logits,
        autocast,
        compiled,
        channels_last,
    )


def _call(module: nn.Module, params: Params, buffers: Buffers, x: Tensor) -> Any:
    return functional_call(module, (params, buffers), (x,))


_compiled_calls: dict[int, tuple[nn.Module, Callable[..., Any]]] = {}


def _compiled(module: nn.Module) -> Callable[..., Any]:
    # Kept beside the module itself, so that an id can't be taken over by another one.
    if id(module) not in _compiled_calls:
        _compiled_calls[id(module)] = (module, torch.compile(_call))
    return _compiled_calls[id(module)][1]


class _dropout_stream:
    """Dropout draws from the global generator: seed it from the chain for one pass, then put it back."""

    def __init__(self, device: torch.device, seed: int) -> None:
        devices = [device] if device.type == "cuda" else []
        self.fork, self.seed = torch.random.fork_rng(devices=devices), seed

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *problem: Any) -> None:
        self.fork.__exit__(*problem)
