"""The detector: a network, a little trusted data, and from then on a verdict on every input."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from covary.data.source import Source
from covary.errors import CovaryError
from covary.features.cached import CachedRows
from covary.features.extractor import extractor_of, is_language_model
from covary.features.guards import check_missing_classes, check_shape, missing_classes, network_at_work
from covary.features.projections import projection_fingerprint
from covary.models.network import Network
from covary.objects import check_consent, is_object_name, load_object
from covary.scoring.calibration.fitted import fit_judge
from covary.scoring.evidence import Evidence, Explainer
from covary.scoring.judge import Verdicts
from covary.scoring.outlier_methods import NotFitted, OutlierMethods
from covary.scoring.pile.cards import Cards, find_cards
from covary.scoring.pile.stored import verdicts_together
from covary.scoring.pile.together import judge_together, views
from covary.scoring.rows import Batch, Rows
from covary.scoring.rows.quantise import quantise
from covary.settings import Settings, as_before
from covary.storage import detector as saved
from covary.storage.fingerprints import digest_json
from covary.text.models.pipelines import is_pipeline, of_pipeline

if TYPE_CHECKING:
    from covary.features.observables import UserObservable
    from covary.runs.check import CheckReport

Progress = Callable[[int, int], None]
# Settings that a loaded detector may be given anew, since they decide no score.
CHANGEABLE = {"device", "batch_size"}
# Of a larger pile what the first pass measures, some 10 kB an input, is not kept for the second.
MOST_MEASURED_ONCE = 20_000


class Detector(OutlierMethods):
    """Tells, for each input of a network, whether the mechanism behind its output is one seen on trusted inputs.

    >>> detector = Detector(network).fit(trusted)          # doctest: +SKIP
    >>> verdicts = detector.score(inputs)                   # doctest: +SKIP
    >>> verdicts.flagged                                    # doctest: +SKIP

    Args:
        model: a trained `torch.nn.Module`, a function that makes one, or the name `package.module:factory` of that;
            or a language model: a `LanguageModel`, a pipeline of transformers, or a local folder in Hugging Face's
            format.
        weights: a safetensors or torch file to load into it.
        observable: `margin`, `nll`, or a function of (parameters, buffers, batch) with one scalar per sample; None
            takes the estimator's own.
        settings: see `Settings`; the same names as the command line's. `extractor` takes a `GradientSettings`,
            `SampledSettings` or `TextSettings`, or their values may be given by name.
    """

    def __init__(
        self,
        model: Any,
        *,
        weights: str | Path | None = None,
        observable: str | UserObservable | None = None,
        **settings: Any,
    ) -> None:
        self._init_arguments = {"model": model, "weights": weights, "observable": observable, **settings}
        name = observable if observable is None or isinstance(observable, str) else _name_of(observable)
        if "metric" in settings:
            warnings.warn("metric= is now called preconditioner=", FutureWarning, stacklevel=2)
        carried = None
        if is_pipeline(model):
            model, carried = of_pipeline(model)
        if settings.get("extractor") is None and is_language_model(model):
            settings["extractor"] = "text"
        self.settings = Settings.checked(observable=name, **settings)
        function = self.settings.observable if observable is None else observable
        if isinstance(function, str) and is_object_name(function):
            function = load_object(function, "observable")
        self.trusted_fingerprint = ""
        self.thumbnails: dict[str, np.ndarray] = {}
        # (fingerprint of the trusted data, roles) of a fit to be done again; those data then keep their roles.
        self.previous_split: tuple[str, dict[str, list[str]]] | None = None
        self.extractor: Any = extractor_of(self.settings, model, weights, function)
        if carried is not None:
            self.extractor.carried = carried
        # What it was left to choose, such as a precision, is settled now.
        self.settings = self.extractor.settings

    @property
    def network(self) -> Network:
        """The network as it was loaded."""
        return self.extractor.host

    @property
    def classes(self) -> int:
        """Number of the network's outputs; 0 without classes."""
        return self.extractor.classes

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, where the trusted data or the model have some."""
        return self.extractor.class_names

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape of one trusted input, where inputs have one."""
        return self.extractor.input_shape

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to raw inputs, as JSON."""
        return self.extractor.preprocessing

    def fit(
        self,
        trusted: Any,
        y: Any = None,
        *,
        ids: Sequence[str] | None = None,
        calibration: Any = None,
        sampling: Any = None,
        mean: Any = None,
        std: Any = None,
        transform: Any = None,
        class_names: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Detector:
        """Learns from trusted inputs: anything `open_data` takes, such as a path, a Dataset, an array or (x, y).

        Labels `y`, where there are any, only tell which trusted inputs the network gets wrong. `ids` name the inputs in
        evidence and reports; where the data name them, those names are taken. A separate
        `calibration` set replaces the split of the trusted one. Chains of the estimators `paper` and `sgld` descend on
        the labelled `sampling` set, or on half of the trusted inputs. `mean`, `std` and `transform` are remembered and
        applied to every later input. `class_names` are for reports, in the order of the network's outputs.
        """
        extractor = self.extractor
        source = extractor.open_trusted(trusted, y=y, mean=mean, std=std, transform=transform).renamed(ids)
        held, apart = (
            None if other is None else extractor.open(other, like_trusted=True) for other in (calibration, sampling)
        )
        self.trusted_fingerprint = source.fingerprint()
        extractor.look(source)
        if class_names is not None:
            if len(class_names) != self.classes:
                found = f"{len(class_names)} class names"
                raise CovaryError(found, f"{self.classes}, as many as the network has outputs")
            extractor.class_names = [str(name) for name in class_names]
        source, moved_by = extractor.prepare(source, held, apart, self._roles_before())
        rows = self.rows(source, progress)
        self._check_missing_classes(rows)
        labels = source.y if self.classes else None  # without classes no answer could be wrong
        if labels is not None:
            # -1 says that nobody knows, so the network is not known to be wrong.
            labels = np.where(labels < 0, rows.predicted, labels)

        def held_rows() -> Rows | None:
            return None if held is None else self.rows(held, progress)

        def roles() -> dict[str, list[str]]:
            return self.fit_rows(rows, labels, held_rows()).judge.roles

        learned = extractor.learn(source, rows, roles, calibration_apart=held is not None)
        self.fit_rows(self.rows(source, progress) if learned is None else learned, labels, held_rows())
        self.judge.statements += extractor.statements
        if moved_by:
            self.judge.roles["sampling"] = moved_by
        reference = list(self.judge.reference.ids)
        if held is None:
            reference += [holder.id for holder in self.judge.holders]
        extractor.remember(source, reference)
        reference_ids = set(reference)
        pictures = {name: source.thumbnail(i) for i, name in enumerate(source.ids) if name in reference_ids}
        self.thumbnails = {name: picture for name, picture in pictures.items() if picture is not None}
        return self

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
            rows, calibration = quantise(rows), None if calibration is None else quantise(calibration)
        self.trusted_rows, self.labels, self.calibration_rows = rows, labels, calibration
        self.judge = fit_judge(s, rows, labels, calibration, roles or self._roles_before())
        self.judge.statements += missing_classes(np.bincount(rows.predicted, minlength=self.classes))
        self.explainer = Explainer(self.judge)
        return self

    def _roles_before(self) -> dict[str, list[str]] | None:
        fingerprint, roles = self.previous_split or (None, None)
        return roles if fingerprint == self.trusted_fingerprint else None

    def trust(self, inputs: Any, *, origin: str = "", progress: Progress | None = None) -> Detector:
        """A detector that trusts these inputs as well; this one stays as it is.

        They take part in reference, fit and calibration like any trusted input, whatever class the network gives
        them; roles are dealt anew, and nothing else is learned again. Given once more they are copies of trusted
        inputs, which are never flagged.

        Args:
            inputs: whatever `open` takes, such as the members of a card that somebody has found to be fine.
            origin: put in front of their names, which must differ from those of the trusted inputs.
            progress: called with (inputs done, inputs in all).

        Raises:
            CovaryError: a name that a trusted input has already.
        """
        self._fitted()
        source = self.open(inputs)
        rows = self.rows(source, progress)
        rows = replace(rows, ids=[f"{origin}/{name}" if origin else name for name in rows.ids])
        if taken := set(self.trusted_rows.ids) & set(rows.ids):
            found = f"{len(taken)} inputs named as trusted ones are, such as {min(taken)!r}"
            raise CovaryError(found, "other names", "give an origin=")
        more = copy.copy(self)
        more.trusted_fingerprint = with_more(self.trusted_fingerprint, source)
        # Nobody knows their classes, so the network is not known to be wrong.
        labels = None if self.labels is None else np.concatenate([self.labels, rows.predicted])
        more.fit_rows(Rows.concatenate([self.trusted_rows, rows]), labels, self.calibration_rows)
        more.judge.statements += self.extractor.statements
        pictures = {name: source.thumbnail(i) for i, name in enumerate(rows.ids)}
        more.thumbnails = self.thumbnails | {name: picture for name, picture in pictures.items() if picture is not None}
        if "sampling" in self.judge.roles:
            more.judge.roles["sampling"] = self.judge.roles["sampling"]
        return more

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

    def stream(
        self, inputs: Any, progress: Progress | None = None, *, ids: Sequence[str] | None = None
    ) -> Iterator[tuple[Batch, Rows, Verdicts]]:
        """Verdicts batch by batch; memory does not grow with the number of inputs."""
        self._fitted()
        for batch, rows in self._passes(self.open(inputs, ids=ids), progress):
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

    def find_cards(self, inputs: Any, *, progress: Progress | None = None) -> Cards:
        """Directions in which a pile lies beyond trusted inputs, and who lies along each (see `scoring.pile.cards`).

        >>> fine = detector.find_cards(pile).cards[1].members           # doctest: +SKIP
        >>> detector = detector.trust(pile[fine], origin="monday")      # doctest: +SKIP

        Raises:
            CovaryError: a score without parts, such as `class-max`.
        """
        self._fitted()
        views(self.judge)  # what cannot be looked at is told before the work
        return find_cards(self.judge, self.rows(self.open(inputs), progress), seed=self.settings.seed)

    def score(
        self,
        inputs: Any,
        *,
        ids: Sequence[str] | None = None,
        together: bool = False,
        fdr: float | None = None,
        progress: Progress | None = None,
    ) -> Verdicts:
        """Verdicts on all inputs, in order.

        Args:
            inputs: whatever `open` takes.
            ids: unique names of the inputs, in order, in place of those that the data have.
            together: judge the pile together, so that anomalies of one kind give each other away; each score then
                depends on all inputs, and p-values hold as ever.
            fdr: flag by Benjamini-Hochberg over the whole pile at this rate.
            progress: called with (inputs done, inputs in all).
        """
        self._fitted()
        source = self.open(inputs, ids=ids)
        if together and len(source) > MOST_MEASURED_ONCE:
            return self.look(source, progress).score(source, fdr=fdr)
        if together:
            views(self.judge)  # what cannot be looked at is told before the work
            parts = verdicts_together(self.judge, self.rows(source, progress))
        else:
            parts = [verdicts for _, _, verdicts in self.stream(source, progress)]
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
            kind=[name for part in parts for name in part.kind],
            kind_p=np.concatenate([part.kind_p for part in parts]),
        )
        return verdicts if fdr is None else verdicts.with_fdr(fdr)

    def explain(self, inputs: Any, *, ids: Sequence[str] | None = None) -> list[Evidence]:
        """Full evidence on each input: witnesses, share unexplained, layers, classes, and the part that stands out."""
        return [
            evidence
            for _, rows, verdicts in self.stream(inputs, ids=ids)
            for evidence in self.explainer.explain(rows, verdicts)
        ]

    def explain_tokens(self, inputs: Any, *, of: str = "answer") -> list[Any]:
        """Which tokens of each answer trusted texts account for least (`TokenEvidence`); of texts alone.

        With `of="prompt"` those of each prompt, where prompts are judged.
        """
        self._fitted()
        if self.settings.kind != "text":
            raise CovaryError(f"tokens of a detector whose extractor is {self.settings.kind}", "one of texts")
        if of not in ("answer", "prompt"):
            raise CovaryError(f"tokens of {of!r}", "answer or prompt")
        return self.extractor.explain_tokens(self.open(inputs), of)

    def cards(self, inputs: Source) -> list[dict[str, Any]]:
        """What a report shows of each input beyond the evidence."""
        return self.extractor.cards(inputs)

    def report(
        self,
        path: str | Path,
        inputs: Any,
        *,
        ids: Sequence[str] | None = None,
        truth: Any = None,
        target: int | str | None = None,
        fdr: float | None = None,
        together: bool = False,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Judges inputs into a RUN folder, as `covary score` does; returns its report.html, which opens offline.

        Args:
            path: the folder to write; an earlier RUN there is replaced, with `force` also a signed one.
            inputs, ids, fdr, together, progress: as of `score`.
            truth: 1 for inputs known to be anomalous, 0 for clean ones: figures are then measured.
            target: the attacker's class or `all-to-all`, for figures alone.
        """
        from covary.runs.from_python import report

        self._fitted()
        source = self.open(inputs, truth=truth, ids=ids)
        return report(
            self, Path(path), source, fdr=fdr, target=target, together=together, force=force, progress=progress
        )

    def check(self, inputs: Any, trusted: Any = None) -> CheckReport:
        """Looks at inputs before any long work: what was found, and what to change.

        With `trusted`, which may be given before any fit, network and both sets are looked at as `covary check` does.
        Without, inputs are compared with what the fitted detector knows.
        """
        from covary.runs.from_python import check_inputs

        known = None
        if trusted is not None:
            # Before any fit, trusted inputs are opened as a fit would, and the others like them.
            known = self.open(trusted) if hasattr(self, "judge") else self.extractor.open_trusted(trusted)
        return check_inputs(self, self.open(inputs), known)

    def open(self, inputs: Any, *, truth: Any = None, ids: Sequence[str] | None = None) -> Source:
        """Inputs by path, name or array, read and preprocessed as the trusted ones were."""
        return self.extractor.open(inputs, truth=truth).renamed(ids)

    def save(self, folder: str | Path, *, weights: bool | None = None, force: bool = False) -> Path:
        """Writes the detector to a folder of safetensors and JSON, whole or not at all.

        With `weights=False` only the network's fingerprint is kept, and loading needs the network itself. By default a
        network's weights are kept and a language model stays in its own folder, from where loading takes it. A detector
        that is there already is replaced; with `force` also one that is signed.

        Raises:
            CovaryError: the place is taken by something else, or cannot be written to.
        """
        self._fitted()
        of_texts = self.settings.kind == "text"
        if of_texts and weights:
            raise CovaryError("the weights of a language model in a detector", "its own folder", "leave weights= away")
        weights = not of_texts and weights is not False
        arrays, state, write_file = self.extractor.state()
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
            kind=self.settings.kind,
            arrays=arrays,
            state=state,
            write_file=write_file,
        )
        saved.write_detector(Path(folder), what, self.network.module.state_dict() if weights else None, force)
        return Path(folder)

    @staticmethod
    def load(
        folder: str | Path,
        model: Any = None,
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
        what = saved.read_detector(folder, record)
        # A language model lies in a folder of its own.
        place = what.state.get("folder") if what.kind == "text" else record["factory"]
        if model is None and place is None:
            found = f"{folder} does not know how to build its network"
            remedy = "Detector.load(folder, network): pass model="
            raise CovaryError(found, "the network or its factory", remedy)
        code = {
            "network": record["factory"] if model is None else None,
            "transform": record["preprocessing"].get("transform"),
            "observable": record["settings"].get("observable"),
        }
        check_consent(folder, code, trust_code or public_key is not None)
        if weights is None and what.kind != "text" and (model is None or isinstance(model, str)):
            # Without stored weights the factory may still set the right ones, as the fingerprint will tell.
            weights = folder / saved.WEIGHTS if saved.WEIGHTS in record["files"] else None
        with saved.as_written(folder):
            kept = {**what.settings, **changes}
            settings = Settings.checked(**{name: as_before(value) for name, value in kept.items()})
        own = {name: getattr(settings, name) for name in Settings.model_fields}
        detector = Detector(place if model is None else model, weights=weights, **own)
        with saved.as_written(folder):
            detector._take_over(what, record["versions"]["torch"], folder)
        return detector

    def _take_over(self, what: saved.Saved, torch_then: str, folder: Path) -> None:
        if self.network.fingerprint != what.network:
            raise CovaryError(
                f"the network has fingerprint {self.network.fingerprint[:16]}",
                f"{what.network[:16]}, the one the detector was fitted on",
                "pass that network (model=, weights=), or fit again",
            )
        if projection_fingerprint(self.settings.seed) != what.projection:
            raise CovaryError(
                f"torch {torch.__version__} draws other random projections than torch {torch_then}",
                "the same ones",
                "fit again on this installation",
            )
        self.trusted_fingerprint, self.thumbnails = what.trusted_fingerprint, what.thumbnails
        extractor = self.extractor
        extractor.class_names, extractor.classes = what.class_names, what.classes
        extractor.input_shape = None if what.input_shape is None else tuple(what.input_shape)
        if what.kind != "text":
            extractor.preprocessing = what.preprocessing
        extractor.restore(what.arrays, what.state, folder / saved.DRAWS, what.trusted)
        self.fit_rows(what.trusted, what.labels, what.calibration, what.roles)
        if "sampling" in what.roles:
            self.judge.roles["sampling"] = what.roles["sampling"]
        if not np.allclose(self.judge.calibration_scores, what.calibration_scores, rtol=1e-4, atol=1e-4):
            raise CovaryError(
                "this installation computes other calibration scores from the saved rows", "the saved ones", "fit again"
            )

    def __copy__(self) -> Detector:
        """A detector that shares everything; pickling and deep copies go by way of a folder."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds the bytes of the saved folder, and what the detector was made with.

        As of any pickle: read only those of people you trust, since reading one runs their code.
        """
        if not hasattr(self, "judge"):
            return _made_again, (self.get_params(),)
        with tempfile.TemporaryDirectory() as place:
            folder = self.save(Path(place) / "detector")
            files = {file.name: file.read_bytes() for file in folder.iterdir()}
        return _from_files, (files, self.get_params())

    def _fitted(self) -> None:
        if not hasattr(self, "judge"):
            raise NotFitted("the detector has not seen trusted data", "a fitted detector", "call fit(trusted) first")

    def _check_missing_classes(self, rows: Rows) -> None:
        if not self.settings.allow_missing_classes and self.classes:
            check_missing_classes(np.bincount(rows.predicted, minlength=self.classes))


def _made_again(arguments: dict[str, Any]) -> Detector:
    return Detector(arguments["model"], **{name: value for name, value in arguments.items() if name != "model"})


def _from_files(files: dict[str, bytes], arguments: dict[str, Any]) -> Detector:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "detector"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        # A language model has no weights here: it lies in its own folder.
        weights = folder / saved.WEIGHTS if saved.WEIGHTS in files else None
        detector = Detector.load(folder, arguments["model"], weights=weights, trust_code=True)
    detector._init_arguments = arguments
    return detector


def with_more(fingerprint: str, source: Source) -> str:
    """Fingerprint of trusted data and the inputs that were added to them."""
    return digest_json([fingerprint, source.fingerprint()])


def _name_of(function: Callable[..., Any]) -> str:
    kind = type(function)
    return f"{getattr(function, '__module__', kind.__module__)}:{getattr(function, '__qualname__', kind.__qualname__)}"
