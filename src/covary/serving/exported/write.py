"""`covary export`: a detector of latent evidence as a folder that other runtimes can use."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from covary.detector import Detector
from covary.errors import CovaryError, missing_extra, unknown_name
from covary.features.engine.hooks import without_weight_gradients
from covary.scoring.rows import Batch
from covary.serving.exported.graph import Graph, check_exportable
from covary.serving.exported.runtimes import OUTPUTS, open_graph
from covary.storage import exported as stored
from covary.storage.exported import GRAPHS

# How far numbers of the graph may be from the detector's, in units of the largest, and batches that are compared.
APART, COMPARED = 1e-4, (1, 3, 5)
INPUT, BATCH, OPSET = "inputs", "batch", 18
# Of protobuf, beyond which weights lie in a file beside the graph.
ONE_FILE = 2**30


def export(
    detector: Detector, folder: str | Path, *, format: str = "onnx", pixels: bool = False, force: bool = False
) -> dict[str, Any]:
    """Writes a fitted detector of latent evidence as a graph and what its judge needs; returns the record.

    >>> export(detector, "exported/resnet")                      # doctest: +SKIP

    Args:
        detector: fitted with `evidence="latent"`.
        folder: to write; an earlier export there is replaced.
        format: `onnx`, `torchscript` (deprecated by torch) or `pt2` (torch.export).
        pixels: the graph takes images of uint8 as they are stored and scales them itself.
        force: replace an export that is signed.

    Raises:
        CovaryError: a detector of gradients, a network that cannot be traced, or a graph that gives other numbers.
    """
    if format not in GRAPHS:
        raise unknown_name("format", format, GRAPHS)
    detector._fitted()
    extractor, settings = detector.extractor, detector.settings
    check_exportable(extractor, settings, detector.input_shape)
    assert detector.input_shape is not None
    if format == "onnx":
        _needed()
    prepared = detector.preprocessing
    example = _example(detector.input_shape, pixels, max(COMPARED))
    with without_weight_gradients(extractor.module), torch.no_grad():
        plain = Graph(extractor, prepared["mean"], prepared["std"], pixels)
        extractor.rows(Batch([str(i) for i in range(len(example))], plain.prepared(example)))
        if extractor.one_by_one:
            found = f"a network whose samples cannot go in one batch ({extractor.one_by_one.rstrip('.')})"
            raise CovaryError(found, "samples that do not meet in the network", "serve it with `covary serve`")
        graph = Graph(extractor, prepared["mean"], prepared["std"], pixels).eval()
        graph(example)  # settles what the layers give
    record = _record(detector, graph, format, pixels)
    what = stored.Exported(
        record=record,
        trusted=replace(detector.trusted_rows, features=None),
        calibration=None if detector.calibration_rows is None else replace(detector.calibration_rows, features=None),
        labels=detector.labels,
        calibration_scores=detector.judge.calibration_scores,
    )

    def write_graph(part: Path) -> None:
        path = part / GRAPHS[format]
        with without_weight_gradients(extractor.module), torch.no_grad(), _quietly(), _traced(format):
            WRITERS[format](graph, example, path)
        _compare(detector, graph, path, format, example)

    stored.write_exported(Path(folder), what, write_graph, force)
    return record


def _example(shape: tuple[int, ...], pixels: bool, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if not pixels:
        return torch.rand(n, *shape, generator=generator)
    if len(shape) != 3 or shape[0] not in (1, 3, 4):
        raise CovaryError(f"pixels of inputs of shape {shape}", "images, (1, 3 or 4, h, w)", "leave pixels= away")
    return torch.randint(0, 256, (n, *shape[1:], shape[0]), generator=generator).to(torch.uint8)


def _record(detector: Detector, graph: Graph, format: str, pixels: bool) -> dict[str, Any]:
    shape = list(detector.input_shape or ())
    shape = [*shape[1:], shape[0]] if pixels else shape
    return {
        "settings": detector.settings.model_dump(),
        "graph": {
            "format": format,
            "input": {"name": INPUT, "shape": shape, "dtype": "uint8" if pixels else "float32", "pixels": pixels},
            "outputs": list(OUTPUTS),
        },
        "layers": graph.layers,
        "confidence": list(detector.trusted_rows.confidence),
        "fingerprint": detector.network.fingerprint,
        "trusted_fingerprint": detector.trusted_fingerprint,
        "preprocessing": detector.preprocessing,
        "class_names": detector.class_names,
        "classes": detector.classes,
        "roles": detector.judge.roles,
    }


def _onnx(graph: Graph, example: Tensor, path: Path) -> None:
    size = sum(p.numel() * p.element_size() for p in graph.network.parameters())
    program = torch.onnx.export(
        graph, (example,), dynamo=True, verbose=False, opset_version=OPSET, input_names=[INPUT],
        output_names=list(OUTPUTS), dynamic_shapes=({0: torch.export.Dim(BATCH)},),
    )  # fmt: skip
    assert program is not None
    # Where this machine keeps the network's code is nobody's business.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(str(path), external_data=size > ONE_FILE)


def _torchscript(graph: Graph, example: Tensor, path: Path) -> None:
    torch.jit.save(torch.jit.trace(graph, example, check_trace=False), str(path))


def _pt2(graph: Graph, example: Tensor, path: Path) -> None:
    program = torch.export.export(graph, (example,), dynamic_shapes=({0: torch.export.Dim(BATCH)},))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    torch.export.save(program, path)


WRITERS: dict[str, Callable[[Graph, Tensor, Path], None]] = {
    "onnx": _onnx, "torchscript": _torchscript, "pt2": _pt2,
}  # fmt: skip


def _needed() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            raise missing_extra(name, "onnx") from None


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch's exporters say of themselves; what they make is compared with the detector."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def _traced(format: str) -> Iterator[None]:
    """Whatever keeps a network from being traced, as one sentence."""
    try:
        yield
    except (CovaryError, OSError):
        raise
    except Exception as problem:
        reason = (str(problem).strip().splitlines() or [""])[0][:200]
        others = ", ".join(name for name in GRAPHS if name != format)
        raise CovaryError(
            f"the network cannot be traced into {format} ({type(problem).__name__}: {reason})",
            "a forward pass that does not depend on the values of its inputs",
            f"try format={others}, or serve the detector with `covary serve`",
        ) from problem


def _compare(detector: Detector, graph: Graph, path: Path, format: str, example: Tensor) -> None:
    """Refuses a graph whose numbers are not the detector's, in batches of several sizes."""
    run = open_graph(path, format)
    for n in COMPARED:
        x = example[-n:]
        try:
            found = run(x.numpy())
        except Exception as problem:
            reason = (str(problem).strip().splitlines() or [""])[0][:200]
            told = f"the network traced into {format} does not run on a batch of {n} ({reason})"
            raise CovaryError(told, "a graph for batches of any size", "try another format=") from problem
        rows = detector.extractor.rows(Batch([str(i) for i in range(n)], graph.prepared(x)))
        expected = np.concatenate([*rows.latent.values(), np.stack(list(rows.confidence.values()), 1)], axis=1)
        got = np.concatenate([found["latent"], found["confidence"]], axis=1)
        off = np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1.0)
        if not off <= APART or got.shape != expected.shape:
            told = f"the network traced into {format} gives other numbers on a batch of {n}, off by {off:.1e}"
            raise CovaryError(told, f"the detector's to {APART:g}", "try another format=, or `covary serve`")
