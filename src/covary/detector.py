"""The detector: a network, a little trusted data, and from then on a verdict on every input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file as save_tensors

from covary import store
from covary.config import Settings
from covary.data import Source, open_data
from covary.errors import CovaryError
from covary.evidence import Evidence, Explainer
from covary.features import FeatureExtractor
from covary.fingerprints import versions
from covary.judge import Judge, Verdicts
from covary.models import Network, as_logits, load_network
from covary.names import is_object_name, load_object
from covary.projections import projection_fingerprint
from covary.types import Batch, Rows

if TYPE_CHECKING:
    from torch import nn

    from covary.observables import UserObservable

FORMAT = 1
RECORD = "detector.json"
Progress = Callable[[int, int], None]


class Detector:
    """Tells, for each input of a network, whether the mechanism behind its output is one seen on trusted inputs.

    >>> detector = Detector(network).fit(trusted)          # doctest: +SKIP
    >>> verdicts = detector.score(inputs)                   # doctest: +SKIP
    >>> verdicts.flagged                                    # doctest: +SKIP

    Args:
        model: a trained `torch.nn.Module`, or the name `package.module:factory` of a function that makes one.
        weights: a safetensors or torch file to load into it.
        observable: `margin`, `nll`, or a function of (parameters, buffers, batch) with one scalar per sample.
        settings: see `Settings`; the same names as the command line's.
    """

    def __init__(
        self,
        model: nn.Module | str,
        *,
        weights: str | Path | None = None,
        observable: str | UserObservable = "margin",
        **settings: Any,
    ) -> None:
        function = observable
        if isinstance(observable, str) and is_object_name(observable):
            function = load_object(observable, "observable")
        name = observable if isinstance(observable, str) else f"{observable.__module__}:{observable.__qualname__}"
        self.settings = Settings.checked(observable=name, **settings)
        s = self.settings
        self.network: Network = load_network(model, weights, device=s.device, output=s.output)
        self.extractor = FeatureExtractor(
            self.network.module,
            lambda out: as_logits(out, self.network.output),
            observable=function,
            space=s.space,
            seed=s.seed,
            device=s.device,
            amp=s.amp,
            channels_last=s.channels_last,
            engine=s.engine,
        )

    def fit(
        self,
        trusted: Any,
        y: Any = None,
        *,
        calibration: Any = None,
        mean: Any = None,
        std: Any = None,
        transform: Any = None,
        progress: Progress | None = None,
    ) -> Detector:
        """Learns from trusted inputs: anything `open_data` takes, such as a path, a Dataset, an array or (x, y).

        Labels `y`, where there are any, only tell which trusted inputs the network gets wrong. A separate
        `calibration` set replaces the split of the trusted one. `mean`, `std` and `transform` are remembered and
        applied to every later input.
        """
        source = open_data(trusted, y=y, mean=mean, std=std, transform=transform)
        held = None if calibration is None else open_data(calibration, mean=mean, std=std, transform=transform)
        self.preprocessing = source.preprocessing
        self.class_names = source.class_names
        self.trusted_fingerprint = source.fingerprint()
        labels = source.y
        self.classes = 0 if self.extractor.observable is None else self._count_classes(source, labels)
        rows = self.rows(source, progress)
        calibration_rows = None if held is None else self.rows(held, progress)
        self.fit_rows(rows, labels, calibration_rows)
        wanted = set(self.judge.reference.ids)
        pictures = {name: source.thumbnail(i) for i, name in enumerate(source.ids) if name in wanted}
        self.thumbnails = {name: picture for name, picture in pictures.items() if picture is not None}
        return self

    def fit_rows(self, rows: Rows, labels: np.ndarray | None = None, calibration: Rows | None = None) -> Detector:
        """The same on rows that are there already."""
        s = self.settings
        self.trusted_rows, self.labels, self.calibration_rows = rows, labels, calibration
        self.judge = Judge(s.score, s.coupling, s.fpr, s.per_class, s.seed).fit(rows, labels, calibration)
        self.explainer = Explainer(self.judge)
        return self

    def rows(self, inputs: Source, progress: Progress | None = None) -> Rows:
        """Rows of a set of inputs small enough to keep."""
        return Rows.concatenate([rows for _, rows in self._passes(inputs, progress)])

    def _passes(self, source: Source, progress: Progress | None = None) -> Iterator[tuple[Batch, Rows]]:
        done = 0
        for batch in source.batches(self.settings.batch_size):
            rows = self.extractor.rows(batch)
            done += len(batch)
            if progress is not None:
                progress(done, len(source))
            yield batch, rows

    def stream(self, inputs: Any, progress: Progress | None = None) -> Iterator[tuple[Batch, Rows, Verdicts]]:
        """Verdicts batch by batch; memory does not grow with the number of inputs."""
        self._fitted()
        for batch, rows in self._passes(self.open(inputs), progress):
            yield batch, rows, self.judge.judge(rows)

    def score(self, inputs: Any, *, fdr: float | None = None, progress: Progress | None = None) -> Verdicts:
        """Verdicts on all inputs, in order; with `fdr`, flagged by Benjamini-Hochberg over the whole pile."""
        parts = [verdicts for _, _, verdicts in self.stream(inputs, progress)]
        verdicts = Verdicts(
            ids=[name for part in parts for name in part.ids],
            score=np.concatenate([part.score for part in parts]),
            p_value=np.concatenate([part.p_value for part in parts]),
            flagged=np.concatenate([part.flagged for part in parts]),
            predicted=np.concatenate([part.predicted for part in parts]),
            parts={kind: np.concatenate([part.parts[kind] for part in parts]) for kind in parts[0].parts},
        )
        return verdicts if fdr is None else verdicts.with_fdr(fdr)

    def explain(self, inputs: Any) -> list[Evidence]:
        """Full evidence on each input: witnesses, share unexplained, layers, classes, and the part that stands out."""
        return [
            evidence for _, rows, verdicts in self.stream(inputs) for evidence in self.explainer.explain(rows, verdicts)
        ]

    def open(self, inputs: Any) -> Source:
        """Inputs by path, name or array, preprocessed as the trusted ones were."""
        return inputs if isinstance(inputs, Source) else open_data(inputs, **self.preprocessing)

    def save(self, folder: str | Path, *, weights: bool = True) -> Path:
        """Writes the detector to a folder of safetensors and JSON, whole or not at all.

        With `weights=False` only the network's fingerprint is kept, and loading needs the network itself.
        """
        self._fitted()
        folder = Path(folder)
        with store.whole_folder(folder) as part:
            arrays, trusted = store.rows_to_arrays(self.trusted_rows, "trusted")
            calibration = None
            if self.calibration_rows is not None:
                more, calibration = store.rows_to_arrays(self.calibration_rows, "calibration")
                arrays |= more
            if self.labels is not None:
                arrays["labels"] = np.asarray(self.labels, np.int64)
            arrays["calibration_scores"] = self.judge.calibration_scores
            store.write_arrays(part / "rows.safetensors", arrays)
            if self.thumbnails:
                store.write_arrays(part / "thumbnails.safetensors", self.thumbnails)
            if weights:
                state = self.network.module.state_dict()
                save_tensors({name: t.detach().cpu().contiguous().clone() for name, t in state.items()},
                             part / "weights.safetensors")  # fmt: skip
            record = {
                "format": FORMAT,
                "settings": self.settings.model_dump(),
                "factory": self.network.factory,
                "fingerprint": self.network.fingerprint,
                "projection": projection_fingerprint(self.settings.seed),
                "preprocessing": self.preprocessing,
                "class_names": self.class_names,
                "classes": self.classes,
                "trusted_fingerprint": self.trusted_fingerprint,
                "trusted": trusted,
                "calibration": calibration,
                "roles": self.judge.roles,
                "versions": versions(),
            }
            store.seal(part, record, RECORD)
        return folder

    @staticmethod
    def load(
        folder: str | Path,
        model: nn.Module | str | None = None,
        *,
        weights: str | Path | None = None,
        **changes: Any,
    ) -> Detector:
        """A saved detector, ready to score; `changes` may name settings that do not decide scores, such as `device`.

        Raises:
            CovaryError: a missing, damaged or foreign folder, another network than it was fitted on, or an
                installation whose random projections differ.
        """
        folder = Path(folder)
        record = store.open_sealed(folder, RECORD, "a folder written by `covary fit`")
        if record.get("format") != FORMAT:
            raise CovaryError(f"{folder} has format {record.get('format')}", f"format {FORMAT}", "use another covary")
        forbidden = set(changes) - {"device", "batch_size"}
        if forbidden:
            raise CovaryError(f"{', '.join(sorted(forbidden))} cannot change after fitting", "device or batch_size")
        stored = folder / "weights.safetensors"
        if model is None and record["factory"] is None:
            raise CovaryError(f"{folder} does not know how to build its network", "--model", "pass the network")
        if weights is None and not hasattr(model, "state_dict"):
            if not stored.is_file():
                raise CovaryError(f"{folder} was saved without weights", "--weights", "pass the network's weights")
            weights = stored
        detector = Detector(model or record["factory"], weights=weights, **{**record["settings"], **changes})
        if detector.network.fingerprint != record["fingerprint"]:
            raise CovaryError(
                f"the network has fingerprint {detector.network.fingerprint[:16]}",
                f"{record['fingerprint'][:16]}, the one the detector was fitted on",
                "pass that network, or fit again",
            )
        if projection_fingerprint(detector.settings.seed) != record["projection"]:
            raise CovaryError(
                f"torch {torch.__version__} draws other random projections than torch {record['versions']['torch']}",
                "the same ones",
                "fit again on this installation",
            )
        arrays = store.read_arrays(folder / "rows.safetensors")
        pictures = folder / "thumbnails.safetensors"
        detector.thumbnails = store.read_arrays(pictures) if pictures.is_file() else {}
        detector.preprocessing = record["preprocessing"]
        detector.class_names = record["class_names"]
        detector.classes = record["classes"]
        detector.trusted_fingerprint = record["trusted_fingerprint"]
        calibration = record["calibration"]
        detector.fit_rows(
            store.rows_from_arrays(arrays, record["trusted"], "trusted"),
            arrays.get("labels"),
            None if calibration is None else store.rows_from_arrays(arrays, calibration, "calibration"),
        )
        if not np.allclose(detector.judge.calibration_scores, arrays["calibration_scores"], rtol=1e-4, atol=1e-4):
            raise CovaryError(
                "this installation computes other calibration scores from the saved rows", "the saved ones", "fit again"
            )
        return detector

    def _fitted(self) -> None:
        if not hasattr(self, "judge"):
            raise CovaryError("the detector has not seen trusted data", "a fitted detector", "call fit(trusted) first")

    def _count_classes(self, source: Source, labels: np.ndarray | None) -> int:
        classes = self.network.logits(next(source.take([0]).batches(1)).x).shape[1]
        if labels is not None and not (0 <= labels.min() and labels.max() < classes):
            raise CovaryError(
                f"trusted labels run from {labels.min()} to {labels.max()}",
                f"0 to {classes - 1}, as many as the network has outputs",
                "number the classes as in training",
            )
        return classes
