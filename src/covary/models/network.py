"""The network: from a module or the name of a factory, and a weights file, to logits and a fingerprint."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from covary.errors import CovaryError
from covary.models.weights import load_weights
from covary.objects import load_object
from covary.storage.fingerprints import digest_tensors

# Wrappers that change names and nothing else; torch.func works on what is inside.
WRAPPERS = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
# What a module writes into when it is called, hooked or put into another mode.
_OWN = {"_buffers", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"}  # fmt: skip


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
        self.module = called_with_one(module).eval()
        self.factory, self.output, self.weights_from = factory, output, weights_from

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

    def inputs(self, x: Any) -> Any:
        """A batch on the network's device; floats in its dtype, token ids and masks as they are."""

        def placed(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(self.device, self.dtype) if leaf.is_floating_point() else leaf.to(self.device)

        return tree_map(placed, x)

    def names(self, input_name: str | None, fields: Sequence[str]) -> tuple[str, ...]:
        """The input's name and those of its fields that forward takes; empty where the input alone is passed by place.

        >>> Network(nn.Bilinear(2, 2, 2)).names("x", ["input2", "mask"])
        ('x', 'input2')
        """
        parameters = inspect.signature(self.module_forward).parameters
        if input_name is None or not parameters:
            return ()
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        taken = tuple(name for name in fields if name in parameters or anything)
        first = next(iter(parameters))
        return (input_name, *taken) if taken or (input_name in parameters and input_name != first) else ()

    @property
    def module_forward(self) -> Callable[..., Any]:
        """The network's own forward."""
        return getattr(self.module, OWN_FORWARD, self.module.forward)

    @torch.no_grad()
    def logits(self, x: Any) -> Float[Tensor, "n c"]:
        """Logits of a batch, float32, on the network's device."""
        return as_logits(self.module(self.inputs(x)), self.output).float()

    def differentiable(self, x: Any) -> bool:
        """Whether the logits of a batch depend on any parameter in a way that autograd can follow."""
        moving = {n: p.detach().requires_grad_() for n, p in self.module.named_parameters() if p.is_floating_point()}
        with torch.enable_grad():
            return as_logits(functional_call(self.module, moving, (self.inputs(x),)), self.output).requires_grad


# Where a network that takes inputs by name keeps its own forward.
OWN_FORWARD = "_covary_forward"


class _ByName:
    """A forward that takes a dictionary; a copy of its network calls the copy's own."""

    def __init__(self, own: Callable[..., Any], parameters: tuple[str, ...], anything: bool) -> None:
        self.own, self.parameters, self.anything = own, parameters, anything

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], dict) and not kwargs:
            arguments = args[0]
            taken = {
                k: v for k, v in arguments.items() if k in self.parameters or (self.anything and len(arguments) > 1)
            }
            return self.own(*[v for k, v in arguments.items() if k not in taken], **taken)
        return self.own(*args, **kwargs)


def called_with_one(module: nn.Module) -> nn.Module:
    """A network whose forward takes several inputs, as one that takes them in a dictionary, by name, as well.

    The returned module shares parameters, buffers and layers with the one given, which stays as it was. Entries that
    forward does not name are passed by place.
    """
    parameters = inspect.signature(module.forward).parameters
    several = len(parameters) > 1 or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not several or hasattr(module, OWN_FORWARD) or isinstance(module, torch.fx.GraphModule):
        return module
    adapted = copy.copy(module)
    own = vars(module).get("forward") or MethodType(type(module).forward, adapted)
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    vars(adapted).update({"forward": _ByName(own, tuple(parameters), anything), OWN_FORWARD: own})
    return adapted


def check_module(module: nn.Module) -> None:
    """Refuses modules whose layers cannot be looked into or whose weights cannot move, each in one sentence.

    Raises:
        CovaryError: a scripted, traced or exported network, or one with quantised layers.
    """
    remedy = "pass the nn.Module it was made from, with the same weights"
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise CovaryError("the network was made by torch.jit.script or torch.jit.trace", "an nn.Module", remedy)
    if isinstance(module, torch.fx.GraphModule) and not _may_be_put_in_eval_mode(module):
        raise CovaryError("the network was made by torch.export", "an nn.Module", remedy)
    for name, part in module.named_modules():
        if ".quantized" in type(part).__module__ or ".quantizable" in type(part).__module__:
            found = f"layer `{name}` ({type(part).__module__}.{type(part).__name__}) is quantised"
            raise CovaryError(found, "weights in floating point", "pass the network as it was before quantisation")


def _may_be_put_in_eval_mode(module: nn.Module) -> bool:
    try:
        module.eval()
    except NotImplementedError:
        return False
    return True


def load_network(
    model: Network | nn.Module | Callable[[], nn.Module] | str,
    weights: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    output: str | int | None = None,
    num_threads: int | None = None,
) -> Network:
    """A network ready to answer: built, its weights loaded, in eval mode, on `device`.

    Args:
        model: a module, a function that returns one, or `package.module:factory` that is either; a Network is
            returned as it is.
        weights: a safetensors file, or a torch file with a state dict, also inside a checkpoint; never unpickled into
            anything but tensors. None leaves the weights the factory set.
        device: "cpu", "cuda", "cuda:1", "mps".
        output: key or index of the logits where the module returns a dict, an object or a tuple.
        num_threads: threads torch may use on the CPU.

    Raises:
        CovaryError: no such factory, weights that do not fit or are no weights, a device that is not there, a scripted,
            traced, exported or quantised network.
    """
    if isinstance(model, Network):
        return model
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    factory = model if isinstance(model, str) else None
    module = unwrapped(built(model))
    check_module(module)
    if isinstance(model, nn.Module):
        # The caller's own keeps its mode, its hooks, its device and its flags.
        module = copy.deepcopy(module) if weights is not None else sharing_weights(module)
    found_in = None if weights is None else load_weights(module, Path(weights))
    lazy = [name for name, p in module.named_parameters() if is_lazy(p)]
    if lazy:
        raise CovaryError(f"{lazy[0]} has no shape yet (a lazy module)", "initialised weights", "pass weights=")
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
        raise CovaryError(f"device {str(device)!r} cannot be used: {reason}", "", "pass device=cpu") from error


def check_device(device: str) -> None:
    """Raises CovaryError unless tensors can be put on the device."""
    with device_at_work(device):
        torch.zeros(1, device=torch.device(device))


def built(model: nn.Module | Callable[[], nn.Module] | str) -> nn.Module:
    """The module that `model` is, returns or names."""
    if isinstance(model, nn.Module):
        return model
    found: Any = load_object(model, "model") if isinstance(model, str) else model
    name = model if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise CovaryError(f"{name} is a {type(found).__name__}", "a function that returns a torch.nn.Module")
        try:
            found = found()
        except Exception as error:
            remedy = "the factory is called without arguments; wrap it in a function that gives them"
            raise CovaryError(f"{name}() failed with {type(error).__name__}: {error}", "", remedy) from error
    if not isinstance(found, nn.Module):
        raise CovaryError(f"{name}() returned a {type(found).__name__}", "a torch.nn.Module")
    return found


def sharing_weights(module: nn.Module, trainable: bool = True) -> nn.Module:
    """A copy of a module with mode, hooks and state of its own whose weights and buffers are the original's memory.

    With `trainable=False` no weight of the copy requires a gradient. A module spread over devices is its own copy, as
    what holds its weights at other places cannot be copied.
    """
    if hasattr(module, "hf_device_map") or any(is_lazy(p) or p.is_meta for p in module.parameters()):
        return module
    kept: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=trainable and p.requires_grad) for p in module.parameters()
    }
    kept |= {id(b): b for b in module.buffers()}
    try:
        return copy.deepcopy(module, dict(kept))
    except (RuntimeError, TypeError, NotImplementedError, AttributeError):
        return _in_structure(module, kept, {})  # weights that torch.nn.utils.weight_norm computes, an open file, a lock


def _in_structure(module: nn.Module, kept: dict[int, Any], made: dict[int, nn.Module]) -> nn.Module:
    """The same modules anew, with all else shared."""
    if id(module) in made:
        return made[id(module)]
    other = made[id(module)] = module.__class__.__new__(module.__class__)
    other.__dict__ = {key: copy.copy(value) if key in _OWN else value for key, value in module.__dict__.items()}
    other._parameters = {name: None if p is None else kept[id(p)] for name, p in module._parameters.items()}
    other._modules = {
        name: None if child is None else _in_structure(child, kept, made) for name, child in module._modules.items()
    }
    return other


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


# What to do with one answer a pixel or a token.
DENSE = "for an answer at each place pass observable=package.module:function, one number an input"


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
        remedy = "" if logits.ndim < 3 else DENSE
        raise CovaryError(f"the network returned logits of shape {tuple(logits.shape)}", "(inputs, classes)", remedy)
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def _no_output(found: str, selector: str | int | None) -> CovaryError:
    choice = "" if selector is None else f", not {selector!r}"
    remedy = "name it with output=KEY or its index"
    return CovaryError(f"the network returns {found}{choice}", "a tensor of logits", remedy)
