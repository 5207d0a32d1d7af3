"""A report and a check of what is in a Python session: no names, no command line."""

from __future__ import annotations

from pathlib import Path

from covary.data.source import Source
from covary.detector import Detector, Progress
from covary.errors import CovaryError
from covary.runs.check import CheckReport, Finding, check, check_texts, sets
from covary.runs.check.findings import refusal
from covary.runs.folder.write import write_run
from covary.runs.report import REPORT, write_report
from covary.text.source import write_completions

# Inputs that are sent through the network for a check.
LIMIT = 256


def report(
    detector: Detector,
    out: Path,
    inputs: Source,
    *,
    fdr: float | None = None,
    target: int | str | None = None,
    together: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Judges inputs into the RUN folder `out`, as `covary score` does; returns the path of its report.html."""
    write_run(
        detector, inputs, out, fdr=fdr, target=target, together=together, force=force, progress=progress,
        report=lambda folder: (write_completions(inputs, folder), write_report(folder)),
    )  # fmt: skip
    return out / REPORT


def check_inputs(detector: Detector, inputs: Source, trusted: Source | None = None) -> CheckReport:
    """What a check finds in inputs; beside trusted inputs everything that `covary check` looks at.

    Without `trusted` the detector must be fitted: the inputs are read, sent through the network, and compared with what
    it has learned.
    """
    settings = detector.settings
    if trusted is not None:
        if settings.kind == "text":
            return check_texts(trusted, inputs, fpr=settings.fpr)
        how = settings.calibrates_by(len(trusted))
        return check(
            detector.network, trusted, inputs, fpr=settings.fpr, conformal=how, batch_size=settings.batch_size,
            by_gradients=settings.by_gradients and not settings.sampled,
            said_of_images=detector.extractor.said_of_images,
        )  # fmt: skip
    detector._fitted()
    if settings.kind == "text":
        return CheckReport([Finding("ok", "Inputs", f"{len(inputs)} texts."), *sets.left_out(inputs, "Inputs")])
    finding, about = sets.described(inputs, "Inputs")
    findings = [finding, *sets.left_out(inputs, "Inputs")]
    if about is None:
        return CheckReport(findings, {"n_inputs": len(inputs)})
    findings += sets.repeatable(inputs, "Inputs")
    try:
        verdicts = detector.score(inputs.take(range(min(len(inputs), LIMIT))))
    except CovaryError as problem:
        return CheckReport([*findings, refusal("Inputs", problem)], {"n_inputs": len(inputs)})
    copies = [name for name in verdicts.copy_of if name]
    if copies:
        text = f"{len(copies)} of {len(verdicts)} inputs looked at are copies of trusted ones, such as {copies[0]!r}."
        findings.append(Finding("warning", "Inputs that are trusted ones", text, "Take them out of either set."))
    known = set(detector.trusted_rows.predicted.tolist())
    unseen = sorted(set(verdicts.predicted.tolist()) - known)
    if unseen and detector.classes:
        text = f"Some inputs are answered with class {', '.join(map(str, unseen))}, no trusted input is."
        change = "Add trusted inputs of these classes; nothing explains them."
        findings.append(Finding("warning", "Unseen classes", text, change))
    figures = {"n_inputs": len(inputs), "looked_at": len(verdicts), "n_flagged": int(verdicts.flagged.sum())}
    return CheckReport(findings, figures)

