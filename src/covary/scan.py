"""The whole job: from names of a network and of data to a RUN or a saved detector; what the command line calls."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from covary import store
from covary.check import CheckReport, check
from covary.config import Settings
from covary.console import print_findings, progress
from covary.data import Source, open_data
from covary.detector import RECORD, Detector
from covary.errors import CovaryError
from covary.fingerprints import digest_file
from covary.models import load_network
from covary.names import is_object_name
from covary.report import write_report
from covary.run import write_run


class Plan(BaseModel):
    """Everything a scan is made of, by name, so that a RUN can be replayed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights: str | None = None
    trusted: str
    calibration: str | None = None
    inputs: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    transform: str | None = None
    truth: str | None = None
    target: int | str | None = None
    fdr: float | None = Field(default=None, gt=0, lt=1)
    settings: Settings = Settings()

    @staticmethod
    def checked(*, settings: dict[str, Any], **names: Any) -> Plan:
        """A plan from loose values; a wrong one is told in one sentence."""
        try:
            return Plan(settings=Settings.checked(**settings), **names)
        except ValidationError as problem:
            first = problem.errors()[0]
            raise CovaryError(f"{first['loc'][0]} is {first.get('input')!r}", first["msg"]) from None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to raw inputs."""
        return {"mean": self.mean, "std": self.std, "transform": self.transform}

    def open_trusted(self) -> Source:
        """The trusted inputs."""
        return open_data(self.trusted, **self.preprocessing)

    def open_calibration(self) -> Source | None:
        """The separate calibration inputs, if any."""
        return None if self.calibration is None else open_data(self.calibration, **self.preprocessing)

    def open_inputs(self) -> Source | None:
        """The inputs to judge, if any."""
        return None if self.inputs is None else open_data(self.inputs, truth=self.truth, **self.preprocessing)


def check_plan(plan: Plan) -> CheckReport:
    """Looks at network and data before any long work."""
    s = plan.settings
    network = load_network(plan.model, plan.weights, device=s.device, output=s.output)
    return check(
        network,
        plan.open_trusted(),
        plan.open_inputs(),
        fpr=s.fpr,
        calibration=plan.open_calibration(),
        batch_size=s.batch_size,
    )


def _checked(plan: Plan, quiet: bool) -> list[dict[str, Any]]:
    if is_object_name(plan.settings.observable):
        # A user's own observable may need no logits at all, which is all a check could look at.
        return []
    report = check_plan(plan)
    findings = report.to_json()["findings"]
    errors = list(report.of_level("error"))
    if errors:
        raise CovaryError(f"{errors[0].title}: {errors[0].text}".rstrip(". "), "", errors[0].change)
    if not quiet:
        print_findings(findings, everything=False)
    return findings


def _fitted(plan: Plan, quiet: bool) -> Detector:
    detector = Detector(plan.model, weights=plan.weights, **plan.settings.model_dump())
    with progress("trusted inputs") as bar:
        detector.fit(plan.open_trusted(), calibration=plan.open_calibration(), progress=None if quiet else bar)
    return detector


def scan(plan: Plan, out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Check, fit and score in one go; returns the summary of the RUN written to `out`."""
    started = time.perf_counter()
    inputs = plan.open_inputs()
    if inputs is None:
        raise CovaryError("there is nothing to judge", "--inputs")
    store.refuse_taken(out)
    findings = _checked(plan, quiet)
    detector = _fitted(plan, quiet)
    config = {"plan": plan.model_dump()}
    return _judged(detector, inputs, out, plan, findings, config, started, quiet)


def _judged(
    detector: Detector,
    inputs: Source,
    out: Path,
    plan: Any,
    findings: list[dict[str, Any]],
    config: dict[str, Any],
    started: float,
    quiet: bool,
) -> dict[str, Any]:
    with progress("inputs") as bar:
        return write_run(
            detector,
            inputs,
            out,
            fdr=plan.fdr,
            target=plan.target,
            config=config,
            findings=findings,
            started=started,
            progress=None if quiet else bar,
            report=write_report,
        )


def fit(plan: Plan, out: Path, *, weights: bool = True, quiet: bool = False) -> dict[str, Any]:
    """Learns from trusted inputs and saves the detector to `out`; returns what `describe` says of it."""
    store.refuse_taken(out)
    _checked(plan, quiet)
    _fitted(plan, quiet).save(out, weights=weights)
    return describe(out)


class _Pile(BaseModel):
    fdr: float | None = Field(default=None, gt=0, lt=1)
    target: int | str | None = None


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
    device: str = "cpu",
    batch_size: int = 64,
    quiet: bool = False,
) -> dict[str, Any]:
    """Judges inputs by a saved detector; returns the summary of the RUN written to `out`."""
    started = time.perf_counter()
    store.refuse_taken(out)
    detector = Detector.load(folder, model, weights=weights, device=device, batch_size=batch_size)
    inputs = open_data(data, truth=truth, **detector.preprocessing)
    config = {"detector": str(folder), "inputs": data, "truth": truth}
    try:
        pile = _Pile(fdr=fdr, target=target)
    except ValidationError as problem:
        raise CovaryError(f"fdr is {fdr}", problem.errors()[0]["msg"]) from None
    return _judged(detector, inputs, out, pile, [], config, started, quiet)


def replay_folder(run: Path) -> Path:
    """Where a replay goes unless told otherwise."""
    return run.with_name(run.name + "-replay")


def replay(run: Path, out: Path | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Does again what an earlier RUN did and compares: the new summary, and whether the results are identical."""
    old = store.read_json(run / "run.json", "a RUN written by `covary scan`")
    plan = old["config"].get("plan")
    if plan is None:
        raise CovaryError(f"{run} was made from a saved detector", "a RUN of `covary scan`", "use `covary score` again")
    out = out or replay_folder(run)
    summary = scan(Plan(**plan), out, quiet=True)
    new = store.read_json(out / "run.json", "the RUN just written")
    changed = {
        name: [value, new["fingerprints"].get(name)]
        for name, value in old["fingerprints"].items()
        if new["fingerprints"].get(name) != value
    }
    return summary, {"identical": "results" not in changed, "changed": changed}


def describe(folder: Path) -> dict[str, Any]:
    """What a detector or a RUN holds, once it is known to be intact."""
    if (folder / RECORD).exists():
        record = store.open_sealed(folder, RECORD, "a folder written by `covary fit`")
        roles = {role: len(names) for role, names in record["roles"].items()}
        size = sum(file.stat().st_size for file in folder.iterdir())
        return {
            "kind": "detector",
            "folder": str(folder),
            "model": record["factory"],
            "network": record["fingerprint"],
            "weights": "stored" if (folder / "weights.safetensors").exists() else "not stored",
            "trusted": len(record["trusted"]["ids"]),
            "roles": roles,
            "settings": record["settings"],
            "preprocessing": record["preprocessing"],
            "layers": len(record["trusted"]["functional"]),
            "bytes": size,
            "versions": record["versions"],
        }
    if (folder / "run.json").exists():
        record = store.read_json(folder / "run.json", "a RUN")
        summary = store.read_json(folder / "summary.json", "a RUN")
        found = digest_file(folder / "results.csv")
        if found != record["fingerprints"]["results"]:
            raise CovaryError(
                f"{folder / 'results.csv'} was changed", f"sha256 {record['fingerprints']['results'][:16]}", f"found {found[:16]}"
            )
        return {"kind": "run", "folder": str(folder), **summary, "fingerprints": record["fingerprints"]}
    raise CovaryError(f"{folder} is neither a detector nor a RUN", "a folder with detector.json or run.json")
