"""Verdicts of an exported detector: a graph's numbers, judged without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covary.errors import CovaryError
from covary.objects import NotTrusted
from covary.scoring.calibration.fitted import fit_judge
from covary.scoring.judge import Judge, Verdicts
from covary.scoring.rows import Rows
from covary.serving.exported.runtimes import Run, open_graph
from covary.settings import Settings
from covary.storage import exported as stored
from covary.storage.exported import GRAPHS

# How far calibration scores may be from those that were exported.
APART = 1e-4


class ExportedDetector:
    """An exported detector: its graph's numbers become verdicts; neither torch nor the network's code is loaded.

    >>> exported = ExportedDetector.load("exported/resnet")      # doctest: +SKIP
    >>> exported.score(inputs).flagged                           # doctest: +SKIP

    Where another program runs the graph, `judge` takes its outputs.

    Attributes:
        record: what the folder says of itself.
        judge_of_rows: the judge, fitted on the exported rows.
    """

    def __init__(self, record: dict[str, Any], judge: Judge, run: Run | None = None) -> None:
        self.record, self.judge_of_rows, self._run = record, judge, run
        self.layers: dict[str, int] = record["layers"]
        self._done = 0

    @staticmethod
    def load(
        folder: str | Path,
        *,
        graph: bool = True,
        public_key: str | Path | None = None,
        trust_code: bool = False,
        **options: Any,
    ) -> ExportedDetector:
        """What `covary export` wrote, once every byte of it has been checked.

        Args:
            folder: the exported folder.
            graph: open the graph as well; not needed by who runs it elsewhere.
            public_key: a PEM file; the folder must have been signed with its private key.
            trust_code: run a graph of torch, which may hold code; ONNX holds none.
            options: of the runtime, such as onnxruntime's `providers`.

        Raises:
            CovaryError: a missing, damaged or foreign folder, a graph of torch that nobody has agreed to, or an
                installation that computes other calibration scores.
        """
        folder = Path(folder)
        record = stored.open_record(folder, public_key)
        format = record["graph"]["format"]
        if graph and format != "onnx" and not trust_code and public_key is None:
            found = f"{folder} holds a graph of torch ({GRAPHS[format]}), which may run code"
            remedy = "pass trust_code=True, check its signature (public_key=), or export to ONNX"
            raise NotTrusted(found, "your consent", remedy)
        what = stored.read_exported(folder, record)
        judge = fit_judge(
            Settings.checked(**record["settings"]), what.trusted, what.labels, what.calibration, record["roles"]
        )
        if not np.allclose(judge.calibration_scores, what.calibration_scores, rtol=APART, atol=APART):
            found = "this installation computes other calibration scores from the exported rows"
            raise CovaryError(found, "the exported ones", "export again")
        run = open_graph(folder / GRAPHS[format], format, **options) if graph else None
        return ExportedDetector(record, judge, run)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as the graph takes it."""
        return tuple(self.record["graph"]["input"]["shape"])

    def run(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs of the graph by name: `logits`, `predicted`, `confidence` and `latent`.

        Args:
            inputs: (n, *input_shape); images of uint8, (n, h, w, c) or (n, h, w), are scaled where the graph does not.

        Raises:
            CovaryError: inputs of another shape or kind; the graph is elsewhere.
        """
        if self._run is None:
            raise CovaryError("an exported detector loaded without its graph", "outputs of it", "call judge(outputs)")
        return self._run(self.check(np.asarray(inputs)))

    def score(self, inputs: np.ndarray, *, ids: Sequence[str] | None = None, batch_size: int = 64) -> Verdicts:
        """Verdicts on inputs, in order; the detector's own to rounding (see `run`)."""
        inputs = np.asarray(inputs)
        names = self._names(len(inputs), ids)
        parts = [
            self.rows(self.run(inputs[start : start + batch_size]), names[start : start + batch_size])
            for start in range(0, len(inputs), batch_size)
        ]
        if not parts:
            raise CovaryError("no input to judge", "at least one")
        return self.judge_of_rows.judge(Rows.concatenate(parts))

    def judge(self, outputs: Mapping[str, Any], *, ids: Sequence[str] | None = None) -> Verdicts:
        """Verdicts from a graph's outputs by name, whoever ran it.

        Raises:
            CovaryError: an output is missing or has another shape.
        """
        n = len(np.asarray(next(iter(outputs.values())))) if outputs else 0
        return self.judge_of_rows.judge(self.rows(outputs, self._names(n, ids)))

    def rows(self, outputs: Mapping[str, Any], ids: Sequence[str]) -> Rows:
        """A graph's outputs as rows."""
        n, wide = len(ids), sum(self.layers.values())
        shapes = {"predicted": (n,), "confidence": (n, len(self.record["confidence"])), "latent": (n, wide)}
        arrays = {}
        for name, shape in shapes.items():
            if name not in outputs:
                raise CovaryError(f"no output {name!r}", f"{', '.join(shapes)}", "ask the graph for all of them")
            arrays[name] = np.asarray(outputs[name])
            if arrays[name].shape != shape:
                found = f"the output {name!r} of shape {arrays[name].shape}"
                raise CovaryError(found, f"{shape}, as the exported graph gives it")
        if not np.isfinite(arrays["confidence"]).all() or not np.isfinite(arrays["latent"]).all():
            bad = ~(np.isfinite(arrays["confidence"]).all(1) & np.isfinite(arrays["latent"]).all(1))
            found = f"outputs of input {ids[int(np.flatnonzero(bad)[0])]!r} that are not finite"
            raise CovaryError(found, "finite numbers", "check the input's scaling")
        ends = np.cumsum([0, *self.layers.values()])
        latent = arrays["latent"].astype(np.float32)
        confidence = arrays["confidence"].astype(np.float64)
        return Rows(
            ids=list(ids),
            predicted=arrays["predicted"].astype(np.int64),
            observable=confidence[:, 0],
            functional={},
            functional_norms=np.empty((n, 0)),
            latent={name: latent[:, a:b] for name, a, b in zip(self.layers, ends, ends[1:], strict=False)},
            confidence={name: confidence[:, i] for i, name in enumerate(self.record["confidence"])},
        )

    def _names(self, n: int, ids: Sequence[str] | None) -> list[str]:
        if ids is None:
            return [str(i) for i in range(n)]
        if len(ids) != n:
            raise CovaryError(f"{len(ids)} names for {n} inputs", "one for each")
        return list(ids)

    def check(self, x: np.ndarray) -> np.ndarray:
        """Inputs as the graph takes them, or why it does not.

        Raises:
            CovaryError: inputs of another shape or kind, or not finite.
        """
        about = self.record["graph"]["input"]
        if about["pixels"]:
            x = x[..., None] if x.dtype == np.uint8 and x.ndim == 3 else x
        elif x.dtype == np.uint8 and x.ndim in (3, 4):
            x = (x[:, None] if x.ndim == 3 else np.moveaxis(x, -1, 1)).astype(np.float32) / np.float32(255)
        x = x.astype(np.float32) if x.dtype.kind == "f" else x
        expected = f"{about['dtype']} of shape (n, {', '.join(map(str, self.input_shape))})"
        if x.shape[1:] != self.input_shape or str(x.dtype) != about["dtype"]:
            found = f"inputs of shape {x.shape}, {x.dtype}"
            raise CovaryError(found, expected, "prepare them as the trusted ones were")
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise CovaryError("inputs that hold NaN or infinity", "finite numbers", "remove them")
        return x
