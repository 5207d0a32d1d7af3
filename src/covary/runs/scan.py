"""The whole job: from names of a network and of data to a RUN or a saved detector; what the command line calls."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from covary.data.carried import open_as_carried
from covary.data.class_names import read_class_names
from covary.data.presets import carried_by
from covary.data.source import Source, open_data
from covary.detector import Detector, Progress, with_more
from covary.errors import CovaryError
from covary.features.guards import check_missing_classes, check_target
from covary.models.network import load_network
from covary.models.spaces import select_parameters
from covary.objects import check_consent, is_object_name
from covary.runs.check import CheckReport, check, check_texts
from covary.runs.display import SILENT, Display
from covary.runs.folder.write import Also, write_run
from covary.runs.report import write_report
from covary.runs.report.run_folder import section
from covary.settings import (
    ArraySettings,
    GradientSettings,
    SampledSettings,
    Settings,
    TextSettings,
    as_before,
    estimator_named,
    wrong_value,
)
from covary.storage import detector as saved
from covary.storage import exported, folders
from covary.storage.fingerprints import digest_file
from covary.storage.receipts import RECORDS
from covary.storage.verify import in_words, receipt_state
from covary.text.models.pretrained import load_language_model
from covary.text.source import write_completions


class PileSettings(BaseModel):
    """What is asked of a pile of inputs as a whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    truth: str | None = None
    target: int | str | None = None
    fdr: float | None = Field(default=None, gt=0, lt=1)
    offline: bool = False
    # Not the command's own default: what was planned before piles were judged together is done again as it was.
    together: bool = False

    @staticmethod
    def checked(**values: Any) -> PileSettings:
        """From loose values; a wrong one is told in one sentence."""
        try:
            return PileSettings(**values)
        except ValidationError as problem:
            raise wrong_value(problem) from None


class Addition(BaseModel):
    """Inputs of an earlier RUN that somebody has found to be fine.

    Attributes:
        run: its folder's name; receipt: the SHA-256 of its receipt, None where it had none.
        inputs: its inputs by name.
        ids: of those that were added.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    receipt: str | None
    inputs: str
    ids: list[str]

    def for_receipt(self) -> dict[str, Any]:
        """What the receipt of a RUN says of it."""
        return {"run": self.run, "receipt": self.receipt, "n": len(self.ids), "ids": self.ids}


# What only a network of arrays has; texts carry truth and labels themselves.
NOT_OF_TEXTS = ("weights", "sampling", "mean", "std", "transform", "truth", "target", "class_names")


class ScanPlan(PileSettings):
    """Everything a scan is made of, by name, so that a RUN can be replayed."""

    model: str
    weights: str | None = None
    trusted: str
    calibration: str | None = None
    sampling: str | None = None
    inputs: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    transform: str | None = None
    class_names: str | None = None
    added: list[Addition] = []
    settings: Settings = Settings()

    @model_validator(mode="before")
    @classmethod
    def _former(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Plans of before kept what was asked of texts apart from the settings."""
        values = dict(values)
        text = values.pop("text", None)
        if text is not None:
            values["settings"] = {**values["settings"], "extractor": {**text, "kind": "text"}}
        if isinstance(values.get("settings"), dict) and "extractor" in values["settings"]:
            kept = values["settings"]
            values["settings"] = {**kept, "extractor": as_before(kept["extractor"])}
        return values

    @model_validator(mode="after")
    def _check_texts(self) -> ScanPlan:
        if self.settings.kind == "text":
            for name in NOT_OF_TEXTS:
                if getattr(self, name) is not None:
                    raise CovaryError(f"{name}= beside a language model", "one or the other", f"leave {name}= away")
        return self

    @staticmethod
    def checked(*, settings: dict[str, Any], **names: Any) -> ScanPlan:
        """A plan from loose values; a wrong one is told in one sentence."""
        try:
            return ScanPlan(settings=Settings.checked(**settings), **names)
        except ValidationError as problem:
            raise wrong_value(problem) from None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to raw inputs."""
        return {"mean": self.mean, "std": self.std, "transform": self.transform}


class Material:
    """What a plan names, opened once: check, fit and score see the same model and the same data."""

    def __init__(self, plan: ScanPlan) -> None:
        self.plan = plan

    @cached_property
    def model(self) -> Any:
        """The network with its weights, or the language model."""
        s, own = self.plan.settings, self.plan.settings.extractor
        if isinstance(own, TextSettings):
            return load_language_model(self.plan.model, dtype=own.dtype, device=s.device, adapter=own.adapter)
        assert isinstance(own, ArraySettings)
        return load_network(self.plan.model, self.plan.weights, device=s.device, output=own.output)

    @cached_property
    def detector(self) -> Detector:
        """The detector, not yet fitted; it opens later inputs as it opened the trusted ones."""
        settings = {name: getattr(self.plan.settings, name) for name in Settings.model_fields}
        return Detector(self.model, **settings)

    @cached_property
    def trusted(self) -> Source:
        """The trusted inputs."""
        if self.plan.settings.kind == "text":
            return self.detector.extractor.open_trusted(self.plan.trusted)
        return self._trusted[0]

    @cached_property
    def _trusted(self) -> tuple[Source, str]:
        # Without the detector, which a check of a network that it refuses must not need.
        return open_as_carried(carried_by(self.model.module), self.plan.trusted, **self.plan.preprocessing)

    @property
    def said_of_images(self) -> str:
        """What came of what the network says of its images, in a sentence; empty where it says nothing."""
        return "" if self.plan.settings.kind == "text" else self._trusted[1]

    @cached_property
    def calibration(self) -> Source | None:
        """The separate calibration inputs, if any, read as the trusted ones are."""
        return self._like_trusted(self.plan.calibration)

    @cached_property
    def sampling(self) -> Source | None:
        """The separate sampling inputs, if any."""
        return self._like_trusted(self.plan.sampling)

    @cached_property
    def inputs(self) -> Source | None:
        """The inputs to judge, if any."""
        return self._like_trusted(self.plan.inputs, self.plan.truth)

    def _like_trusted(self, name: str | None, truth: str | None = None) -> Source | None:
        if name is None:
            return None
        trusted = self.trusted
        if self.plan.settings.kind == "text":
            return self.detector.open(name)
        return open_data(name, truth=truth, **{**trusted.preprocessing, "mode": trusted.mode})

    @property
    def trusted_fingerprint(self) -> str:
        """Of everything that is trusted, inputs of earlier RUNs among it."""
        opened = [(addition, self._like_trusted(addition.inputs)) for addition in self.plan.added]
        more = [taken(source, addition.ids) for addition, source in opened if source is not None]
        return functools.reduce(with_more, more, self.trusted.fingerprint())

    def fit(self, before: PreviousSplit | None = None, progress: Progress | None = None) -> Detector:
        """The detector, fitted; `before` are fingerprint and roles of all trusted data in a RUN that is done again."""
        self.detector.previous_split = before
        names = None if self.plan.class_names is None else read_class_names(self.plan.class_names)
        detector = self.detector.fit(
            self.trusted, calibration=self.calibration, sampling=self.sampling, class_names=names, progress=progress
        )
        return trusting(detector, self.plan.added)


def taken(source: Source, ids: Sequence[str]) -> Source:
    """The inputs of these names, in that order.

    Raises:
        CovaryError: one is not there.
    """
    places = {name: i for i, name in enumerate(source.ids)}
    unknown = [name for name in ids if name not in places]
    if unknown:
        raise CovaryError(f"no input {unknown[0]!r} in {source.name}", "ids of its inputs", "compare with results.csv")
    return source.take(np.array([places[name] for name in ids], np.int64))


def additions(record: dict[str, Any]) -> list[Addition]:
    """What a RUN trusted besides its trusted data.

    Raises:
        CovaryError: `run.json` is not as covary writes it.
    """
    try:
        return [Addition(**addition) for addition in record.get("added") or []]
    except (TypeError, ValidationError) as problem:
        raise CovaryError("run.json is not as covary writes it (what was added)", WHAT, "scan again") from problem


def trusting(detector: Detector, added: Sequence[Addition]) -> Detector:
    """The detector with inputs of earlier RUNs among its trusted ones."""
    for addition in added:
        detector = detector.trust(taken(detector.open(addition.inputs), addition.ids), origin=addition.run)
    return detector


PreviousSplit = tuple[str, dict[str, list[str]]]

# What the features of one input cost, in forward passes, for the estimate before the work.
FORWARDS = {"hooks": 3.5, "exact": 8.0}
# By kind of evidence: whether gradients are taken, and the passes beside theirs.
EVIDENCE = {"latent": (False, 1.0), "fast": (True, 0.0), "thorough": (True, 3.0)}


def _forwards(own: GradientSettings, evidence: str) -> float:
    gradients, more = EVIDENCE[evidence]
    return FORWARDS[own.engine] * gradients + more


def _draws(s: Settings) -> int:
    """Draws of the weights that all chains keep; 0 of a first-order estimator."""
    if not isinstance(s.extractor, SampledSettings):
        return 0
    draws = s.extractor.draws
    return (estimator_named(s.estimator).draws if draws is None else draws) * s.extractor.chains


def check_plan(plan: ScanPlan, material: Material | None = None, *, apart: bool = True) -> CheckReport:
    """Looks at the model and data before any long work; with `apart`, trusted inputs should not be among the others."""
    s, own, material = plan.settings, plan.settings.extractor, material or Material(plan)
    if isinstance(own, TextSettings):
        return check_texts(
            material.trusted, material.inputs, fpr=s.fpr, calibration=material.calibration,
            model=material.detector.extractor.model, apart=apart,
        )  # fmt: skip
    draws = _draws(s)
    layerwise = isinstance(own, SampledSettings) and own.layerwise
    moves = len(select_parameters(material.model.module, s.space)) if layerwise else 1
    # A user's own observable may need no logits at all.
    own_observable = is_object_name(s.observable)
    forwards, evidence = 1.0 + draws * moves, None
    if isinstance(own, GradientSettings):
        forwards = _forwards(own, own.evidence)
        if not own_observable:
            evidence = {kind: _forwards(own, kind) for kind in EVIDENCE}
    return check(
        material.model,
        material.trusted,
        material.inputs,
        fpr=s.fpr,
        conformal=s.calibrates_by(len(material.trusted)),
        chosen=s.sets_apart,
        calibration=material.calibration,
        batch_size=s.batch_size,
        forwards_per_input=forwards,
        evidence=evidence,
        draws=draws,
        own_observable=own_observable,
        by_gradients=s.by_gradients,
        said_of_images=material.said_of_images,
        apart=apart,
    )


def _checked(plan: ScanPlan, material: Material, display: Display, apart: bool = True) -> list[dict[str, Any]]:
    """Looks before the long work, and refuses what can not end well."""
    with display.waiting("looking at network and data"):
        report = check_plan(plan, material, apart=apart)
    errors = list(report.of_level("error"))
    if errors:
        # The one that ends it may follow from another, such as weights that were never loaded.
        display.findings([f for f in report.to_json()["findings"] if f["text"] != errors[0].text])
        change = errors[0].change
        raise CovaryError(f"{errors[0].title}: {errors[0].text}".rstrip(". "), "", change[:1].lower() + change[1:])
    counts = np.asarray(report.figures.get("predicted_per_class", []), np.int64)
    if len(counts):
        check_target(plan.target, len(counts))
        # The check looks at some of a large trusted set only; the detector at all of it.
        if not plan.settings.allow_missing_classes and counts.sum() >= report.figures["n_trusted"]:
            check_missing_classes(counts)
    findings = report.to_json()["findings"]
    display.findings(findings)
    return findings


@contextmanager
def _answers_told(detector: Detector, display: Display) -> Iterator[None]:
    """Progress while a language model is asked for answers; of other networks nothing is asked."""
    if detector.settings.kind != "text":
        yield
        return
    with display.progress("texts answered") as bar:
        detector.extractor.answering = bar
        try:
            yield
        finally:
            detector.extractor.answering = None


def _fitted(material: Material, display: Display, before: PreviousSplit | None = None) -> Detector:
    with display.progress("trusted inputs") as bar:
        return material.fit(before, bar)


def scan(
    plan: ScanPlan, out: Path, *, display: Display = SILENT, before: PreviousSplit | None = None, force: bool = False,
    apart: bool = True, also: Also | None = None,
) -> dict[str, Any]:
    """Check, fit and score in one go; returns the summary of the RUN written to `out`.

    `before` are the trusted data's fingerprint and roles in a RUN that is done again: the same data keep their roles.
    `apart` and `also` are as of `check_plan` and `write_run`.
    """
    with folders.reserved(out, "RUN", force=force) as out:
        return _scan(plan, out, display, before, force, apart, also)


def _scan(
    plan: ScanPlan, out: Path, display: Display, before: PreviousSplit | None, force: bool, apart: bool,
    also: Also | None,
) -> dict[str, Any]:
    started = time.perf_counter()
    if plan.inputs is None:
        raise CovaryError("there is nothing to judge", "inputs=")
    if plan.offline and plan.settings.conformal == "auto":
        # One embedding has one score of each calibration input.
        plan = plan.model_copy(update={"settings": plan.settings.model_copy(update={"conformal": "split"})})
    material = Material(plan)
    if plan.class_names is not None:
        read_class_names(plan.class_names)  # a wrong file is told before the long work
    if plan.settings.kind == "text":
        with display.waiting("loading the language model"):
            _ = material.detector
        with _answers_told(material.detector, display):
            _ = material.trusted, material.calibration, material.inputs
    findings = _checked(plan, material, display, apart)
    detector = _fitted(material, display, before)
    inputs = material.inputs
    assert inputs is not None
    names = plan.model_dump(include={"model", "weights", "trusted", "calibration", "sampling", "inputs", "truth"})
    with display.progress("inputs") as bar:
        return write_run(
            detector, inputs, out, fdr=plan.fdr, target=plan.target, offline=plan.offline, together=plan.together,
            added=plan.added, config=names, plan={**plan.model_dump(), "settings": detector.settings.model_dump()},
            findings=findings, started=started, progress=bar, force=force, also=also,
            report=lambda folder: (write_completions(inputs, folder), write_report(folder)),
        )  # fmt: skip


def fit(
    plan: ScanPlan, out: Path, *, weights: bool | None = None, display: Display = SILENT, force: bool = False
) -> dict[str, Any]:
    """Learns from trusted inputs and saves the detector to `out`; returns what `describe` says of it."""
    with folders.reserved(out, "detector", force=force):
        material = Material(plan)
        if plan.settings.kind == "text":
            with _answers_told(material.detector, display):
                _ = material.trusted, material.calibration
        _checked(plan, material, display)
        _fitted(material, display).save(out, weights=weights, force=force)
    return describe(out)


def score(
    folder: Path,
    data: str,
    out: Path,
    *,
    model: str | None = None,
    weights: Path | None = None,
    fdr: float | None = None,
    truth: str | None = None,
    target: int | str | None = None,
    offline: bool = False,
    together: bool = False,
    device: str = "cpu",
    batch_size: int = 64,
    display: Display = SILENT,
    public_key: Path | None = None,
    trust_code: bool = False,
    force: bool = False,
    opened: Callable[[Detector], Source] | None = None,
    flagged_of: str | None = None,
    added: Sequence[Addition] = (),
    also: Also | None = None,
) -> dict[str, Any]:
    """Judges inputs by a saved detector; returns the summary of the RUN written to `out`.

    With `opened` the inputs are what it gives: some of `data`, which the pile `flagged_of` flagged. Inputs `added`
    are trusted as well, in this RUN alone. `also` is as of `write_run`.
    """
    started = time.perf_counter()
    pile = PileSettings.checked(fdr=fdr, truth=truth, target=target, offline=offline, together=together)
    with folders.reserved(out, "RUN", force=force) as out:
        detector = Detector.load(
            folder, model, weights=weights, device=device, batch_size=batch_size, public_key=public_key,
            trust_code=trust_code,
        )  # fmt: skip
        detector = trusting(detector, added)
        with _answers_told(detector, display):
            inputs = detector.open(data, truth=pile.truth) if opened is None else opened(detector)
        names = {"detector": str(folder), "inputs": data, "truth": pile.truth}
        names |= {} if flagged_of is None else {"flagged_of": flagged_of}
        with display.progress("inputs") as bar:
            return write_run(
                detector, inputs, out, fdr=pile.fdr, target=pile.target, offline=pile.offline, together=pile.together,
                added=added, config=names, started=started, progress=bar, force=force, also=also,
                report=lambda folder: (write_completions(inputs, folder), write_report(folder)),
            )  # fmt: skip


def replay_folder(run: Path) -> Path:
    """Where a replay goes unless told otherwise."""
    return run.with_name(run.name + "-replay")


WHAT = "a RUN written by `covary scan` or `covary score`"


def recorded(run: Path, trust_code: bool = False) -> tuple[dict[str, Any], ScanPlan | None]:
    """What a RUN says it was made of, and the plan of its scan; None where a saved detector made it.

    Raises:
        CovaryError: no RUN, one that is not as covary writes it, or one that names code nobody has agreed to run.
    """
    record = folders.read_json(run / "run.json", WHAT)
    try:
        config, plan = dict(record["config"]), record["plan"]
        plan = None if plan is None else ScanPlan(**plan)
        prints, roles = dict(record["fingerprints"]), dict(record.get("roles", {}))
        if not all(isinstance(text, str) for text in (record["folder"], prints["inputs"], prints.get("trusted", ""))):
            raise TypeError("no folder, or no fingerprint of the inputs")
        if not all(isinstance(ids, list) and all(isinstance(name, str) for name in ids) for ids in roles.values()):
            raise TypeError("roles that are no lists of ids")
        if plan is not None and not ("trusted" in prints and roles):
            raise TypeError("no roles of trusted inputs")
        if plan is None and not all(isinstance(config[name], str) for name in ("detector", "inputs")):
            raise TypeError("neither a plan nor a detector and inputs")
    except (KeyError, TypeError, ValueError) as problem:
        reason = " ".join(str(problem).split())
        raise CovaryError(f"{run / 'run.json'} is not as covary writes it ({reason})", WHAT, "scan again") from problem
    named = {"inputs": config.get("inputs"), "truth": config.get("truth")}
    if plan is not None:
        names = ("trusted", "calibration", "sampling", "inputs", "truth", "transform")
        named = {"network": plan.model, **{name: getattr(plan, name) for name in names}}
        named["observable"] = plan.settings.observable
    check_consent(run, named, trust_code)
    return record, plan


def replay(
    run: Path, out: Path | None = None, *, display: Display = SILENT, trust_code: bool = False, force: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Does again what an earlier RUN did and compares: the new summary, and whether the results are identical."""
    out = (out or replay_folder(run)).absolute()
    if out == run.absolute():
        raise CovaryError(f"out= is {out.name}, the RUN to be replayed", "another folder", "leave out= away")
    old, plan = recorded(run, trust_code)
    if plan is None:
        raise CovaryError(f"{run} was made from a saved detector", "a RUN of `covary scan`", "use `covary score` again")
    with working_in(Path(old["folder"])):
        before = (old["fingerprints"]["trusted"], old["roles"])
        summary = scan(plan, out, display=display, before=before, force=force)
    new = folders.read_json(out / "run.json", "the RUN just written")
    changed = {
        name: [value, new["fingerprints"].get(name)]
        for name, value in old["fingerprints"].items()
        if new["fingerprints"].get(name) != value
    }
    return summary, {"identical": "results" not in changed, "changed": changed}


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """In the folder where a RUN was made its relative paths and Python names mean what they meant then."""
    here = Path.cwd()
    # An empty entry means wherever one is: there, modules that covary itself asks for late must not be looked for.
    places = [i for i, entry in enumerate(sys.path) if entry == ""]
    for i in places:
        sys.path[i] = str(here)
    if folder.is_dir():
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        for i in places:
            sys.path[i] = ""


def describe(folder: Path) -> dict[str, Any]:
    """What a detector, a RUN or a finished pile holds, once it is known to be what its receipt says.

    Raises:
        CovaryError: the folder is none of them, or something in it was changed.
    """
    if (folder / saved.RECORD).exists():
        record = saved.open_record(folder)
        return {
            "kind": "detector",
            "folder": str(folder),
            "model": record["factory"],
            "network": record["fingerprint"],
            "weights": "stored" if saved.WEIGHTS in record["files"] else "not stored",
            "trusted": len(record["trusted"]["ids"]),
            "roles": {role: len(names) for role, names in record["roles"].items()},
            "settings": record["settings"],
            "preprocessing": record["preprocessing"],
            "input_shape": record["input_shape"],
            "classes": record["classes"],
            "layers": len(record["trusted"]["functional"] or record["trusted"]["latent"]),
            "bytes": sum(file.stat().st_size for file in folder.iterdir()),
            "versions": record["versions"],
        }
    if (folder / "run.json").exists():
        record = folders.read_json(folder / "run.json", "a RUN")
        summary = folders.read_json(folder / "summary.json", "a RUN")
        state = receipt_state(folder)
        if state not in ("intact", "none"):
            raise CovaryError(f"{folder} {in_words(state)}", "an intact RUN", "get it again from whoever made it")
        then, found = section(record, "fingerprints").get("results"), digest_file(folder / "results.csv")
        if found != then:
            expected = f"sha256 {str(then)[:16]}"
            raise CovaryError(f"{folder / 'results.csv'} was changed", expected, f"found {found[:16]}")
        about = {key: record.get(key) for key in ("config", "fingerprints", "versions", "started")}
        return {"kind": "run", "folder": str(folder), "receipt": state, **summary, **about}
    if (folder / RECORDS["pile"]).exists():
        plan = folders.read_json(folder / RECORDS["pile"], "a pile")
        summary = folders.read_json(folder / "summary.json", "a finished pile")
        state = receipt_state(folder)
        if state != "intact":
            raise CovaryError(f"{folder} {in_words(state)}", "an intact pile", "run `covary score` again")
        return {"kind": "pile", "folder": str(folder), "receipt": state, **summary, "plan": plan}
    if (folder / exported.RECORD).exists():
        return exported.describe(folder)
    found = f"{folder} is no detector, RUN, pile or export"
    raise CovaryError(found, f"a folder with {', '.join(RECORDS.values())}", "check the path")
