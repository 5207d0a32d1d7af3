"""Graphs in the runtimes that take them: onnxruntime, which needs no torch, and torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covary.errors import missing_extra

OUTPUTS = ("logits", "predicted", "confidence", "latent")
# Inputs as the graph takes them -> its outputs by name.
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def open_graph(path: Path, format: str, **options: Any) -> Run:
    """A function that runs a graph; `options` go to `onnxruntime.InferenceSession`, such as `providers`."""
    return RUNTIMES[format](path, **options)


def _onnx(path: Path, providers: Sequence[Any] | None = None, **options: Any) -> Run:
    try:
        import onnxruntime
    except ImportError:
        raise missing_extra("onnxruntime", "onnx") from None
    session = onnxruntime.InferenceSession(str(path), providers=list(providers or ["CPUExecutionProvider"]), **options)
    name = session.get_inputs()[0].name

    def run(x: np.ndarray) -> dict[str, np.ndarray]:
        found = session.run(list(OUTPUTS), {name: np.ascontiguousarray(x)})
        return {name: np.asarray(array) for name, array in zip(OUTPUTS, found, strict=True)}

    return run


def _torch(module: Any) -> Run:
    import torch

    def run(x: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            found = module(torch.from_numpy(np.ascontiguousarray(x)))
        return {name: tensor.cpu().numpy() for name, tensor in zip(OUTPUTS, found, strict=True)}

    return run


def _torchscript(path: Path, device: str = "cpu") -> Run:
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return _torch(torch.jit.load(str(path), map_location=device))


def _pt2(path: Path) -> Run:
    import torch

    return _torch(torch.export.load(path).module())


RUNTIMES: dict[str, Callable[..., Run]] = {"onnx": _onnx, "torchscript": _torchscript, "pt2": _pt2}
