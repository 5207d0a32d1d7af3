"""The detector: a network, a little trusted data, and from then on a verdict on every input."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from covary.data.source import Source, open_data
from covary.errors import CovaryError
from covary.features.cached import CachedRows
from covary.features.gradient import GradientExtractor
from covary.features.guards import (
    check_labels,
    check_missing_classes,
    check_shape,
    missing_classes,
    network_at_work,
    no_gradient,
    shape_of_one,
)
from covary.features.preconditioner import Metric, metric_from_arrays, metric_to_arrays
from covary.features.projections import projection_fingerprint
from covary.features.sampled.draws import load_bank, save_bank
from covary.features.sampled.extractor import SampledExtractor, check_observable
from covary.features.sampled.fit import take_draws, tell
from covary.features.survival import Survival
from covary.models.network import Network, as_logits, load_network
from covary.objects import check_consent, is_object_name, load_object
from covary.scoring.evidence import Evidence, Explainer
from covary.scoring.guarantee import calibrate_on_right
from covary.scoring.judge import Judge, Verdicts
from covary.scoring.quantise import halved
from covary.scoring.rows import Batch, Rows
from covary.scoring.splits import LEAST_SPLIT, not_calibrating
from covary.scoring.together import judge_together, views
from covary.settings import Settings
from covary.storage import detector as saved

if TYPE_CHECKING:
    from torch import Tensor, nn

    from covary.features.observables import UserObservable

Progress = Callable[[int, int], None]
# Settings that a loaded detector may be given anew, since they decide no score.
CHANGEABLE = {"device", "batch_size"}
# Trusted inputs that the layers to amplify are chosen on.
CHOSEN_ON = 200


class Detector:
    """Tells, for each input of a network, whether the mechanism behind its output is one seen on trusted inputs.

    >>> detector = Detector(network).fit(trusted)          # doctest: +SKIP
    >>> verdicts = detector.score(inputs)                   # doctest: +SKIP
    >>> verdicts.flagged                                    # doctest: +SKIP

    Args:
        model: a trained `torch.nn.Module`, a function that makes one, or the name `package.module:factory` of that.
        weights: a safetensors or torch file to load into it.
        observable: `margin`, `nll`, or a function of (parameters, buffers, batch) with one scalar per sample; None
            takes the estimator's own.
        settings: see `Settings`; the same names as the command line's.
    """

    def __init__(
        self,
        model: Network | nn.Module | Callable[[], nn.Module] | str,
        *,
        weights: str | Path | None = None,
        observable: str | UserObservable | None = None,
        **settings: Any,
    ) -> None:
        name = observable if observable is None or isinstance(observable, str) else _name_of(observable)
        self.settings = Settings.checked(observable=name, **settings)
        function = self.settings.observable if observable is None else observable
        if isinstance(function, str) and is_object_name(function):
            function = load_object(function, "observable")
        s = self.settings
        self.preprocessing: dict[str, Any] = {"mean": None, "std": None, "transform": None}
        self._transform: Callable[..., Any] | None = None
        self.input_shape: tuple[int, ...] | None = None
        self.classes, self.class_names = 0, None
        self.trusted_fingerprint = ""
        self.thumbnails: dict[str, np.ndarray] = {}
        # (fingerprint of the trusted data, roles) of a fit to be done again; those data then keep their roles.
        self.dealt_before: tuple[str, dict[str, list[str]]] | None = None
        self.network: Network = load_network(model, weights, device=s.device, output=s.output)
        self._function = function
        self.metric: Metric | None = None
        self.survival: Survival | None = None
        self.extractor = self._extractor()

    def _extractor(self) -> GradientExtractor | SampledExtractor:
        s, function = self.settings, self._function
        if s.sampled:
            check_observable(function, s)
            return SampledExtractor(self.network.module, lambda out: as_logits(out, self.network.output), s)
        return GradientExtractor(
            self.network.module,
            lambda out: as_logits(out, self.network.output),
            observable=function,
            space=s.space,
            seed=s.seed,
            device=s.device,
            amp=s.amp,
            channels_last=s.channels_last,
            # A user's function may run another copy of the network, which hooks on this one never see.
            engine=s.engine if isinstance(function, str) else "exact",
            metric=self.metric,
            survival=self.survival,
        )

    def _logits(self, out: Any) -> Tensor:
        return as_logits(out, self.network.output)

    def _with_survival(self, source: Source, rows: Rows, apart: bool, progress: Progress | None) -> Rows:
        """Chooses what is amplified, on trusted inputs that need not calibrate; the rows with their survival."""
        if not self.classes or not isinstance(self.extractor, GradientExtractor):
            raise CovaryError("evidence thorough without the network's own classes", "evidence fast")
        positions = not_calibrating(rows.ids, rows.predicted, self.settings.seed, apart, self.settings.conformal)
        positions = positions[:CHOSEN_ON]
        chosen = source.take(positions.tolist()).batches(self.settings.batch_size)
        self.survival = Survival(self.network.module, self._logits).choose(self.extractor.placed(b) for b in chosen)
        self.extractor = self._extractor()
        assert isinstance(self.extractor, GradientExtractor)
        found: list[np.ndarray | None] = []
        done = 0
        for batch in source.batches(self.settings.batch_size):
            found.append(self.extractor.survived(batch, rows.predicted[done : done + len(batch)]))
            done += len(batch)
            if progress is not None:
                progress(done, len(source))
        there = [part for part in found if part is not None]
        return replace(rows, survival=np.concatenate(there)) if there else rows

    def fit(
        self,
        trusted: Any,
        y: Any = None,
        *,
        calibration: Any = None,
        sampling: Any = None,
        mean: Any = None,
        std: Any = None,
        transform: Any = None,
        class_names: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Detector:
        """Learns from trusted inputs: anything `open_data` takes, such as a path, a Dataset, an array or (x, y).

        Labels `y`, where there are any, only tell which trusted inputs the network gets wrong. A separate
        `calibration` set replaces the split of the trusted one. Chains of the estimators `paper` and `sgld` descend on
        the labelled `sampling` set, or on half of the trusted inputs. `mean`, `std` and `transform` are remembered and
        applied to every later input. `class_names` are for reports, in the order of the network's outputs.
        """
        source = open_data(trusted, y=y, mean=mean, std=std, transform=transform)
        held = calibration
        if held is not None:
            held = open_data(held, mean=source.mean, std=source.std, transform=source.transform, mode=source.mode)
        self.preprocessing, self._transform = source.preprocessing, source.transform
        source, held = self._named(source), None if held is None else self._named(held)
        self.class_names = source.class_names if class_names is None else [str(name) for name in class_names]
        self.trusted_fingerprint = source.fingerprint()
        self._look(source, source.y)
        if class_names is not None and len(class_names) != self.classes:
            raise CovaryError(f"{len(class_names)} class names", f"{self.classes}, as many as the network has outputs")
        moved_by: list[str] = []
        if isinstance(self.extractor, SampledExtractor):
            apart = sampling
            if apart is not None:
                apart = self._named(
                    open_data(apart, mean=source.mean, std=source.std, transform=source.transform, mode=source.mode)
                )
            source, moved_by = take_draws(self.extractor, source, apart, held, self._roles_before())
        elif sampling is not None:
            found = f"a sampling set for the estimator {self.settings.estimator}, which takes no draws"
            raise CovaryError(found, "no --sampling", "or choose --estimator paper or sgld")
        labels = source.y
        rows = self.rows(source, progress)
        if isinstance(self.extractor, SampledExtractor):
            tell(self.extractor, rows)
        self._check_missing_classes(rows)
        if not self.classes:
            labels = None  # no answers that could be wrong
        elif labels is not None:
            # -1 says that nobody knows, so the network is not known to be wrong.
            labels = np.where(labels < 0, rows.predicted, labels)
        if self.settings.evidence == "thorough":
            rows = self._with_survival(source, rows, held is not None, progress)
        held_rows = None if held is None else self.rows(held, progress)
        if self.settings.metric != "identity":
            self._fit_metric(source, self.fit_rows(rows, labels, held_rows).judge)
            rows, held_rows = self.rows(source, progress), None if held is None else self.rows(held, progress)
        self.fit_rows(rows, labels, held_rows)
        if self.survival is not None and not self.survival.depths:
            self.judge.statements.append(
                "Survival says nothing here: amplified layers change the answer of at most "
                f"{self.survival.changed:.0%} of reference inputs, at a factor of {self.survival.factor:g}."
            )
        if moved_by:
            self.judge.roles["sampling"] = moved_by
        wanted = set(self.judge.reference.ids)
        if held is None:
            wanted |= {holder.id for holder in self.judge.holders}
        pictures = {name: source.thumbnail(i) for i, name in enumerate(source.ids) if name in wanted}
        self.thumbnails = {name: picture for name, picture in pictures.items() if picture is not None}
        return self

    def _fit_metric(self, source: Source, judge: Judge) -> None:
        # Of reference inputs alone: calibration and queries must meet a metric that has seen neither.
        if "reference" not in judge.roles:
            raise CovaryError(
                f"metric {self.settings.metric!r} with {len(source)} trusted inputs",
                f"at least {LEAST_SPLIT} and one split, since its own inputs may not calibrate",
                "trust more inputs, leave conformal at auto, or the metric at identity",
            )
        wanted = set(judge.roles["reference"])
        chosen = source.take([i for i, name in enumerate(source.ids) if name in wanted])
        assert isinstance(self.extractor, GradientExtractor)
        moments = self.extractor.moments(chosen.batches(self.settings.batch_size), self.settings.metric)
        self.metric = moments.metric(self.settings.damping)
        self.extractor = self._extractor()

    def fit_rows(
        self,
        rows: Rows,
        labels: np.ndarray | None = None,
        calibration: Rows | None = None,
        roles: dict[str, list[str]] | None = None,
    ) -> Detector:
        """The same on rows that are there already; `roles` as they were dealt out once (see `Judge.fit`)."""
        s = self.settings
        if s.half_rows:
            rows, calibration = halved(rows), None if calibration is None else halved(calibration)
        self.trusted_rows, self.labels, self.calibration_rows = rows, labels, calibration
        self.judge = Judge(s.score, s.coupling, s.fpr, s.per_class, s.seed, s.calibrates_by(len(rows))).fit(
            rows, labels, calibration, roles or self._roles_before()
        )
        self.judge.statements += missing_classes(np.bincount(rows.predicted, minlength=self.classes))
        if s.false_alarms == "right":
            calibrate_on_right(self.judge, self._answered_right())
        self.explainer = Explainer(self.judge)
        return self

    def _answered_right(self) -> list[str]:
        """Names of the trusted inputs whose class is known and which the network answers with it."""
        if self.labels is None or self.calibration_rows is not None:
            where = "trusted inputs without classes" if self.labels is None else "a calibration set apart"
            found = f"false alarms counted over right answers, with {where}"
            raise CovaryError(found, "classes of trusted inputs, some of which calibrate", "count them over all")
        right = self.trusted_rows.predicted == self.labels
        return [name for name, known in zip(self.trusted_rows.ids, right.tolist(), strict=True) if known]

    def _roles_before(self) -> dict[str, list[str]] | None:
        fingerprint, roles = self.dealt_before or (None, None)
        return roles if fingerprint == self.trusted_fingerprint else None

    def rows(self, inputs: Source, progress: Progress | None = None) -> Rows:
        """Rows of a set of inputs; those of very many are mapped from temporary files instead of kept in memory."""
        return Rows.gather((rows for _, rows in self._passes(inputs, progress)), len(inputs))

    def _passes(self, source: Source, progress: Progress | None = None) -> Iterator[tuple[Batch, Rows]]:
        done = 0
        for batch in source.batches(self.settings.batch_size):
            check_shape(batch.x, self.input_shape, source.name)
            with network_at_work(batch):
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

    def look(self, inputs: Any, progress: Progress | None = None) -> Detector:
        """This detector after a look at a pile: it judges the pile's inputs together, and knows their rows already.

        Good for that pile alone. Rows of very many inputs are mapped from temporary files.

        Raises:
            CovaryError: a score without parts, such as `class-max`.
        """
        self._fitted()
        views(self.judge)  # what cannot be looked at is told before the work
        rows = self.rows(self.open(inputs), progress)
        seen = copy.copy(self)
        vars(seen).update(judge=judge_together(self.judge, rows), extractor=CachedRows(self.extractor, rows))
        return seen

    def score(
        self, inputs: Any, *, together: bool = False, fdr: float | None = None, progress: Progress | None = None
    ) -> Verdicts:
        """Verdicts on all inputs, in order.

        Args:
            inputs: whatever `open` takes.
            together: judge the pile together, so that anomalies of one kind give each other away; each score then
                depends on all inputs, and p-values hold as ever.
            fdr: flag by Benjamini-Hochberg over the whole pile at this rate.
            progress: called with (inputs done, inputs in all).
        """
        if together:
            source = self.open(inputs)
            return self.look(source, progress).score(source, fdr=fdr)
        parts = [verdicts for _, _, verdicts in self.stream(inputs, progress)]
        verdicts = Verdicts(
            ids=[name for part in parts for name in part.ids],
            score=np.concatenate([part.score for part in parts]),
            p_value=np.concatenate([part.p_value for part in parts]),
            flagged=np.concatenate([part.flagged for part in parts]),
            predicted=np.concatenate([part.predicted for part in parts]),
            parts={kind: np.concatenate([part.parts[kind] for part in parts]) for kind in parts[0].parts},
            copy_of=[name for part in parts for name in part.copy_of],
            copy_distance=np.concatenate([part.copy_distance for part in parts]),
            stream_score=np.concatenate([part.stream_score for part in parts]),
        )
        return verdicts if fdr is None else verdicts.with_fdr(fdr)

    def explain(self, inputs: Any) -> list[Evidence]:
        """Full evidence on each input: witnesses, share unexplained, layers, classes, and the part that stands out."""
        return [
            evidence for _, rows, verdicts in self.stream(inputs) for evidence in self.explainer.explain(rows, verdicts)
        ]

    def open(self, inputs: Any, *, truth: Any = None) -> Source:
        """Inputs by path, name or array, preprocessed as the trusted ones were."""
        if isinstance(inputs, Source):
            return self._named(inputs)
        # The function itself where it is at hand: a lambda has no name to find it by.
        transform = self._transform or self.preprocessing["transform"]
        return self._named(open_data(inputs, truth=truth, **{**self.preprocessing, "transform": transform}))

    def _named(self, source: Source) -> Source:
        """Inputs with those of their fields that the network's forward takes."""
        names = self.network.names(source.reader.input_name, source.reader.fields)
        if len(names) > 1 and isinstance(self.extractor, SampledExtractor):
            found = f"the fields {', '.join(names[1:])} for the estimator {self.settings.estimator}"
            raise CovaryError(found, "one input by itself", "choose --estimator first-order")
        return source.named(names)

    def save(self, folder: str | Path, *, weights: bool = True, force: bool = False) -> Path:
        """Writes the detector to a folder of safetensors and JSON, whole or not at all.

        With `weights=False` only the network's fingerprint is kept, and loading needs the network itself. A detector
        that is there already is replaced; with `force` also one that is signed.

        Raises:
            CovaryError: the place is taken by something else, or cannot be written to.
        """
        self._fitted()
        what = saved.Saved(
            settings=self.settings.model_dump(),
            factory=self.network.factory,
            network=self.network.fingerprint,
            projection=projection_fingerprint(self.settings.seed),
            preprocessing=self.preprocessing,
            classes=self.classes,
            class_names=self.class_names,
            input_shape=None if self.input_shape is None else list(self.input_shape),
            trusted_fingerprint=self.trusted_fingerprint,
            trusted=self.trusted_rows,
            calibration=self.calibration_rows,
            labels=self.labels,
            calibration_scores=self.judge.calibration_scores,
            roles=self.judge.roles,
            thumbnails=self.thumbnails,
            metric={} if self.metric is None else metric_to_arrays(self.metric),
            write_draws=partial(save_bank, self.extractor.bank)
            if isinstance(self.extractor, SampledExtractor)
            else None,
            survival={} if self.survival is None else self.survival.state,
            sampling=self.extractor.told if isinstance(self.extractor, SampledExtractor) else {},
        )
        saved.write_detector(Path(folder), what, self.network.module.state_dict() if weights else None, force)
        return Path(folder)

    @staticmethod
    def load(
        folder: str | Path,
        model: nn.Module | str | None = None,
        *,
        weights: str | Path | None = None,
        public_key: str | Path | None = None,
        trust_code: bool = False,
        **changes: Any,
    ) -> Detector:
        """A saved detector, ready to score; `changes` may name settings that do not decide scores, such as `device`.

        Args:
            folder: what `save` wrote.
            model: the network, or the name of its factory; else the one that the folder names.
            weights: a file to load into it; else the weights in the folder.
            public_key: a PEM file; the folder must have been signed with its private key (see `covary sign`), and may
                then run the code it names.
            trust_code: run the code that the folder names: its network's factory, a transform, an observable.
            changes: settings that decide no score.

        Raises:
            CovaryError: a missing, damaged or foreign folder, code that nobody has agreed to, another network than it
                was fitted on, an installation whose random projections differ, or a signature that is missing or
                another's.
        """
        folder = Path(folder)
        record = saved.open_record(folder, public_key)
        if forbidden := set(changes) - CHANGEABLE:
            expected = " or ".join(sorted(CHANGEABLE))
            raise CovaryError(f"{', '.join(sorted(forbidden))} cannot change after fitting", expected, "fit again")
        if model is None and record["factory"] is None:
            found = f"{folder} does not know how to build its network"
            remedy = "Detector.load(folder, network), or --model on the command line"
            raise CovaryError(found, "the network or its factory", remedy)
        code = {
            "network": record["factory"] if model is None else None,
            "transform": record["preprocessing"].get("transform"),
            "observable": record["settings"].get("observable"),
        }
        check_consent(folder, code, trust_code or public_key is not None)
        if weights is None and (model is None or isinstance(model, str)):
            # Without stored weights the factory may still set the right ones, as the fingerprint will tell.
            weights = folder / saved.WEIGHTS if saved.WEIGHTS in record["files"] else None
        what = saved.read_detector(folder, record)
        settings = {**what.settings, **changes}
        with saved.as_written(folder):
            Settings.checked(**settings)
        detector = Detector(record["factory"] if model is None else model, weights=weights, **settings)
        with saved.as_written(folder):
            detector._take_over(what, record["versions"]["torch"])
        if isinstance(detector.extractor, SampledExtractor):
            detector.extractor.take(load_bank(folder / saved.DRAWS, detector.extractor.network), what.sampling)
        return detector

    def _take_over(self, what: saved.Saved, torch_then: str) -> None:
        if self.network.fingerprint != what.network:
            raise CovaryError(
                f"the network has fingerprint {self.network.fingerprint[:16]}",
                f"{what.network[:16]}, the one the detector was fitted on",
                "pass that network (--model, --weights), or fit again",
            )
        if projection_fingerprint(self.settings.seed) != what.projection:
            raise CovaryError(
                f"torch {torch.__version__} draws other random projections than torch {torch_then}",
                "the same ones",
                "fit again on this installation",
            )
        self.preprocessing, self._transform = what.preprocessing, None
        self.class_names, self.classes = what.class_names, what.classes
        self.input_shape = None if what.input_shape is None else tuple(what.input_shape)
        self.trusted_fingerprint, self.thumbnails = what.trusted_fingerprint, what.thumbnails
        if what.metric:
            self.metric = metric_from_arrays(what.metric, self.extractor.layers)
        if what.survival:
            self.survival = Survival(self.network.module, self._logits, what.survival)
        if what.metric or what.survival:
            self.extractor = self._extractor()
        self.fit_rows(what.trusted, what.labels, what.calibration, what.roles)
        if "sampling" in what.roles:
            self.judge.roles["sampling"] = what.roles["sampling"]
        if not np.allclose(self.judge.calibration_scores, what.calibration_scores, rtol=1e-4, atol=1e-4):
            raise CovaryError(
                "this installation computes other calibration scores from the saved rows", "the saved ones", "fit again"
            )

    def _fitted(self) -> None:
        if not hasattr(self, "judge"):
            raise CovaryError("the detector has not seen trusted data", "a fitted detector", "call fit(trusted) first")

    def _look(self, source: Source, labels: np.ndarray | None) -> None:
        """What the network makes of one trusted input: how many classes it tells apart, if any."""
        batch = next(source.take([0]).batches(1))
        self.input_shape, self.classes = shape_of_one(batch.x), 0
        if self.extractor.observable is None:
            return
        with network_at_work(batch):
            self.classes = self.network.logits(batch.x).shape[1]
            if isinstance(self.extractor, GradientExtractor) and not self.network.differentiable(batch.x):
                raise no_gradient()
        if labels is not None:
            check_labels(labels, self.classes, source.name)

    def _check_missing_classes(self, rows: Rows) -> None:
        if not self.settings.allow_missing_classes and self.classes:
            check_missing_classes(np.bincount(rows.predicted, minlength=self.classes))


def _name_of(function: Callable[..., Any]) -> str:
    kind = type(function)
    return f"{getattr(function, '__module__', kind.__module__)}:{getattr(function, '__qualname__', kind.__qualname__)}"
