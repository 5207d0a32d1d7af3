"""The network: from a module or the name of a factory, and a weights file, to logits and a fingerprint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from covary.errors import CovaryError
from covary.models.weights import load_weights
from covary.objects import load_object
from covary.storage.fingerprints import digest_tensors

# Wrappers that change names and nothing else; torch.func works on what is inside.
WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}


class Network:
    """A trained network in eval mode, with the output that holds its logits.

    Attributes:
        module: the network, in eval mode, on `device`, in its own dtype.
        factory: `package.module:factory` it was built by, or None for a module passed in.
        output: key or index of the logits in what the module returns; None where it returns a tensor.
        weights_from: the file and, within a checkpoint, the key the weights came from; None where none were loaded.
    """

    def __init__(
        self, module: nn.Module, *, factory: str | None = None, output: str | int | None = None,
        weights_from: str | None = None,
    ) -> None:  # fmt: skip
        self.module, self.factory, self.output, self.weights_from = module.eval(), factory, output, weights_from

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.module.parameters() if not p.is_meta), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the weights."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @property
    def fingerprint(self) -> str:
        """sha256 over names (sorted), dtypes, shapes and contents of all parameters and buffers."""
        tensors = dict(self.module.named_parameters(remove_duplicate=False))
        tensors |= dict(self.module.named_buffers(remove_duplicate=False))
        if any(tensor.is_meta for tensor in tensors.values()):
            # accelerate brings weights that are elsewhere while their own layer is in use.
            from accelerate.utils import align_module_device

            for prefix, layer in self.module.named_modules(remove_duplicate=False):
                with align_module_device(layer):
                    own = {f"{prefix}.{name}".lstrip("."): p for name, p in layer.named_parameters(recurse=False)}
                    tensors |= {name: p.detach().cpu() for name, p in own.items() if tensors[name].is_meta}
        return digest_tensors(tensors)

    def inputs(self, x: Tensor) -> Tensor:
        """A batch on the network's device; floats in its dtype, token ids as they are."""
        return x.to(self.device, self.dtype) if x.is_floating_point() else x.to(self.device)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Float[Tensor, "n c"]:
        """Logits of a batch, float32, on the network's device."""
        return as_logits(self.module(self.inputs(x)), self.output).float()


def load_network(
    model: nn.Module | str,
    weights: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    output: str | int | None = None,
    num_threads: int | None = None,
) -> Network:
    """A network ready to answer: built, its weights loaded, in eval mode, on `device`.

    Args:
        model: a module, or `package.module:factory` that is one, is a class of one, or returns one.
        weights: a safetensors file, or a torch file with a state dict, also inside a checkpoint; never unpickled into
            anything but tensors. None leaves the weights the factory set.
        device: "cpu", "cuda", "cuda:1", "mps".
        output: key or index of the logits where the module returns a dict, an object or a tuple.
        num_threads: threads torch may use on the CPU.

    Raises:
        CovaryError: no such factory, weights that do not fit or are no weights, a device that is not there.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    factory = model if isinstance(model, str) else None
    module = unwrapped(built(model))
    found_in = None if weights is None else load_weights(module, Path(weights))
    lazy = [name for name, p in module.named_parameters() if is_lazy(p)]
    if lazy:
        raise CovaryError(f"{lazy[0]} has no shape yet (a lazy module)", "initialised weights", "pass --weights")
    with device_at_work(device):
        # A module spread over devices by accelerate moves its inputs itself, and may not be moved.
        module = module if hasattr(module, "hf_device_map") else module.to(torch.device(device))
    if isinstance(output, str) and output.lstrip("-").isdigit():
        output = int(output)
    return Network(module, factory=factory, output=output, weights_from=found_in)


@contextmanager
def device_at_work(device: str | torch.device) -> Iterator[None]:
    """Tells in one sentence that a device cannot be used."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CovaryError(f"device {str(device)!r} cannot be used: {reason}", "", "pass --device cpu") from error


def check_device(device: str) -> None:
    """Raises CovaryError unless tensors can be put on the device."""
    with device_at_work(device):
        torch.zeros(1, device=torch.device(device))


def built(model: nn.Module | str) -> nn.Module:
    """The module that `model` is or names."""
    if isinstance(model, nn.Module):
        return model
    found = load_object(model, "model")
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise CovaryError(f"{model} is a {type(found).__name__}", "a function that returns a torch.nn.Module")
        try:
            found = found()
        except Exception as error:
            remedy = "the factory is called without arguments; wrap it in a function that gives them"
            raise CovaryError(f"{model}() failed with {type(error).__name__}: {error}", "", remedy) from error
    if not isinstance(found, nn.Module):
        raise CovaryError(f"{model}() returned a {type(found).__name__}", "a torch.nn.Module")
    return found


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile."""
    while type(module).__name__ in WRAPPERS:
        module = getattr(module, WRAPPERS[type(module).__name__])
    return module


def select_output(output: Any, selector: str | int | None) -> Tensor:
    """The tensor of logits in what a network returned.

    A tensor is itself; without a selector, a dict or object gives its `logits` and anything with one entry that entry.

    Raises:
        CovaryError: more than one entry and no selector, or no such entry.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        names = list(output)
        if selector is None:
            selector = "logits" if "logits" in output else names[0] if len(names) == 1 else None
        if selector in output:
            return select_output(output[selector], None)
        raise _no_output(f"the keys {', '.join(map(str, names))}", selector)
    if isinstance(selector, str) or (selector is None and hasattr(output, "logits")):
        name = selector or "logits"
        if hasattr(output, name):
            return select_output(getattr(output, name), None)
        raise _no_output(f"a {type(output).__name__} without {name!r}", selector)
    if isinstance(output, tuple | list):
        if selector is None and len(output) == 1:
            selector = 0
        if selector is not None and -len(output) <= selector < len(output):
            return select_output(output[selector], None)
        shapes = ", ".join(str(tuple(o.shape)) if isinstance(o, Tensor) else type(o).__name__ for o in output)
        raise _no_output(f"a {type(output).__name__} of {len(output)}: {shapes}", selector)
    raise _no_output(f"a {type(output).__name__}", selector)


def as_logits(output: Any, selector: str | int | None = None) -> Float[Tensor, "n c"]:
    """Logits (n, c) in what a network returned; a single logit z, (n,) or (n, 1), becomes [0, z].

    Depends on shapes alone, so it can be used inside torch.func transforms. Half precision becomes float32, float64
    stays.

    Raises:
        CovaryError: the output is no table of one row a sample.
    """
    logits = select_output(output, selector)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    while logits.ndim > 2 and logits.shape[-1] == 1:
        logits = logits.squeeze(-1)
    if logits.ndim == 1:
        logits = logits.unsqueeze(1)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise CovaryError(f"the network returned logits of shape {tuple(logits.shape)}", "(inputs, classes)")
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def _no_output(found: str, selector: str | int | None) -> CovaryError:
    asked = "" if selector is None else f", not {selector!r}"
    remedy = "name it with --output KEY or INDEX"
    return CovaryError(f"the network returns {found}{asked}", "a tensor of logits", remedy)
