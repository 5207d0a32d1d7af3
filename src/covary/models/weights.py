"""Weights files: safetensors and torch files, bare or inside a checkpoint; never anything but tensors is unpickled."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from covary.errors import CovaryError

# What training scripts call the state dict in a checkpoint; among dicts that fit equally, the first in this order.
CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")
DEPTH = 4
WRAPPED = re.compile(r"^((module|_orig_mod)\.)+")


def load_weights(module: nn.Module, path: Path) -> str:
    """Loads the tensors of a file into `module`; returns the file, with the key within it where there is one.

    Raises:
        CovaryError: no file, a broken one, a pickle of more than tensors, or names and shapes that do not fit.
    """
    if not path.is_file():
        raise CovaryError(f"no weights file at {path}", "a safetensors or torch file", "check the path")
    content = read_weights(path)
    expected = {WRAPPED.sub("", name): tensor for name, tensor in module.state_dict().items()}
    inner = {WRAPPED.sub("", name): name for name in module.state_dict()}
    candidates = [(key, variant) for key, state in state_dicts(content) for variant in renamings(state, expected)]
    if not candidates:
        inside = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise CovaryError(f"{path} holds no named tensors ({inside})", "a state dict", "save model.state_dict()")
    # The first of the best: candidates come in the order of CHECKPOINT_KEYS.
    key, state = max(candidates, key=lambda pair: fit(pair[1], expected))
    wrong = misfits(state, expected)
    if wrong:
        raise CovaryError(
            f"{path} does not fit the network: {summary(wrong)}",
            f"{len(expected)} tensors such as {', '.join(list(expected)[:3])}",
            "check that the factory builds the network these weights were trained in",
        )
    module.load_state_dict({inner[name]: tensor for name, tensor in state.items()}, strict=False)
    return str(path) + (f" [{key}]" if key else "")


def read_weights(path: Path) -> Any:
    """What a weights file holds, on the CPU: tensors and plain containers of them."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how the file was written, which nobody here can change
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CovaryError(f"{path} cannot be read as safetensors ({error})", "an intact file") from error
    except pickle.UnpicklingError as error:
        if path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):
            raise CovaryError(
                f"{path} holds Python objects besides tensors, which covary never loads",
                "a state dict",
                "in your own code: torch.save(model.state_dict(), 'weights.pt'), or safetensors",
            ) from error
        raise CovaryError(f"{path} is no weights file", "safetensors, or what torch.save writes") from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CovaryError(f"{path} cannot be read as a torch file ({reason})", "an intact file") from error


def state_dicts(content: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dict of named tensors in a checkpoint with its path, likely names first."""
    if not isinstance(content, Mapping) or depth > DEPTH:
        return
    tensors = {name: v for name, v in content.items() if isinstance(name, str) and isinstance(v, Tensor)}
    if tensors:
        yield key, tensors
    order = {name: i for i, name in enumerate(CHECKPOINT_KEYS)}
    for name in sorted((n for n in content if isinstance(n, str)), key=lambda n: order.get(n, len(order))):
        yield from state_dicts(content[name], f"{key}.{name}" if key else name, depth + 1)


def renamings(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """A state dict without wrappers' prefixes; then what lies under a first part such as Lightning's `model.`."""
    plain = {WRAPPED.sub("", name): tensor for name, tensor in state.items()}
    yield plain
    heads = {name.split(".", 1)[0] for name in plain if "." in name}
    for head in sorted(heads - {name.split(".", 1)[0] for name in expected}):
        part = {name.removeprefix(f"{head}."): t for name, t in plain.items() if name.startswith(f"{head}.")}
        yield {WRAPPED.sub("", name): tensor for name, tensor in part.items()}


def fit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[int, int]:
    """How well a state dict fits: tensors that do, then (minus) those that do not; (0, 0) where none does."""
    matching = sum(n in expected and (is_lazy(expected[n]) or expected[n].shape == t.shape) for n, t in state.items())
    return (matching, -sum(map(len, misfits(state, expected).values()))) if matching else (0, 0)


def misfits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What keeps a state dict from fitting: names that are missing, not expected, or of another shape."""
    found: dict[str, list[str]] = {"missing": [], "unexpected": [], "another shape": []}
    # safetensors keeps one name of tensors that share memory.
    shared = {expected[name].data_ptr() for name in state if name in expected and not is_lazy(expected[name])}
    for name, tensor in expected.items():
        if name not in state:
            # Files written before PyTorch counted batches lack this one, and nothing reads it in eval mode.
            if not name.endswith("num_batches_tracked") and (is_lazy(tensor) or tensor.data_ptr() not in shared):
                found["missing"].append(name)
        elif not is_lazy(tensor) and state[name].shape != tensor.shape:
            found["another shape"].append(f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}")
    found["unexpected"] = [name for name in state if name not in expected]
    return {kind: names for kind, names in found.items() if names}


def summary(wrong: Mapping[str, list[str]], most: int = 3) -> str:
    """Misfits in words: how many of each kind, and the first few."""
    parts = []
    for kind, names in wrong.items():
        rest = f" and {len(names) - most} more" if len(names) > most else ""
        parts.append(f"{len(names)} {kind} ({', '.join(names[:most])}{rest})")
    return ", ".join(parts)
