"""A RUN: a folder with the verdict on every input, the figures, the configuration and what the report needs."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from covary.data.source import Source
from covary.detector import Detector, Progress
from covary.features.guards import check_labels, check_target
from covary.models.spaces import ROOT
from covary.runs.figures.quality import auroc, evaluate, masked, thinned_roc
from covary.runs.folder.cards import build_cards, holders
from covary.runs.folder.cells import to_cell
from covary.runs.folder.summary import summary_of
from covary.runs.pile.cards import FILE as CARDS
from covary.runs.pile.cards import cards_record, in_summary, statement
from covary.runs.pile.transductive import judged_together
from covary.scoring.calibration import conformal
from covary.scoring.kinds import MECHANISM, UNSURE
from covary.scoring.pile.cards import SHIFT_LIKE, Cards, find_cards
from covary.scoring.scores.layers import per_layer_deviation
from covary.scoring.scores.parts import PARTS
from covary.storage import folders
from covary.storage.fingerprints import digest_file, versions
from covary.storage.receipts import write_receipt

# Of results.csv: these, the RUN's own evidence parts, more, and `y` and `truth` where they are known.
COLUMNS = ["id", "score", "p_value", "flagged", "predicted"]
MORE_COLUMNS = [
    "raised_by", "kind", "kind_p", "unexplained", "least_explained_layer", "explained_by", "copy_of", "card",
]  # fmt: skip
# What writes more into a RUN: called with the detector that judged, the inputs, and the folder while it is written.
Also = Callable[[Detector, Source, Path], Any]
# Inputs named where nothing is flagged.
HIGHEST = 5


class _Kept:
    """What stays in memory of every input: a few numbers, no rows and no names."""

    def __init__(self, parts: list[str]) -> None:
        self.score: list[np.ndarray] = []
        self.p_value: list[np.ndarray] = []
        self.flagged: list[np.ndarray] = []
        self.predicted: list[np.ndarray] = []
        self.copies: list[tuple[str, str, float]] = []
        self.parts: dict[str, list[np.ndarray]] = {kind: [] for kind in parts}

    def joined(self, name: str) -> np.ndarray:
        return np.concatenate(getattr(self, name))


def write_run(
    detector: Detector,
    inputs: Source,
    out: Path,
    *,
    fdr: float | None = None,
    target: int | str | None = None,
    offline: bool = False,
    together: bool = False,
    added: Sequence[Any] = (),
    config: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = None,
    findings: list[dict[str, Any]] | None = None,
    started: float | None = None,
    progress: Progress | None = None,
    report: Callable[[Path], Any] | None = None,
    also: Also | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Scores `inputs` into the folder `out` and returns the summary; the folder appears whole or not at all.

    Args:
        detector, inputs, out: what judges, what is judged, and where the RUN goes.
        fdr: flag by Benjamini-Hochberg over the pile at this rate.
        target: the attacker's label or `all-to-all`, for figures alone.
        together: judge the pile together (see `Detector.look`).
        offline: judge the pile as a whole (see `covary.runs.pile.transductive`).
        added: inputs of earlier RUNs among the trusted ones (see `covary.runs.scan.Addition`).
        config: where things came from, to be told beside the detector's settings.
        plan: what `scan` needs to do it all again.
        findings: what a check found; None where none was run.
        started: when the work began, on `time.perf_counter`'s clock.
        progress: called with (inputs done, inputs in all).
        report: writes the report into the folder.
        also: writes what else the folder is to hold; called with the detector that judged, the inputs and the folder.
        force: replace an earlier RUN though it is signed.
    """
    started = time.perf_counter() if started is None else started
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    if detector.classes:
        check_target(target, detector.classes)
        if inputs.reader.cheap and inputs.y is not None:
            check_labels(inputs.y, detector.classes, inputs.name)
    found: Cards | None = None
    if offline:
        detector = judged_together(detector, inputs, progress)
    elif together:
        judge, detector = detector.judge, detector.look(inputs, progress)
        found = find_cards(judge, detector.extractor.known, seed=detector.settings.seed)
    with folders.atomic_folder(Path(out), "RUN", force=force) as folder:
        kept = _stream(detector, inputs, folder / "verdicts.csv", progress)
        p, scores = kept.joined("p_value"), kept.joined("score")
        flagged = kept.joined("flagged") if fdr is None else conformal.benjamini_hochberg(p, fdr)
        _results(folder / "verdicts.csv", folder / "results.csv", flagged, inputs, detector.judge.parts, found)
        summary = _summary(detector, inputs, kept, flagged, fdr, target)
        summary["checked"] = findings is not None
        summary["left_out"] = inputs.left_out
        summary["statements"] += [f"Inputs: {left} left out." for left in inputs.reader.left_out]
        summary["statements"] += inputs.notes
        _note_copies(summary, kept)
        summary["n_added"] = sum(len(addition.ids) for addition in added)
        summary["statements"] += [
            f"{len(addition.ids):,} inputs of the RUN {addition.run} are trusted as well, since somebody said so."
            for addition in added
        ]
        if not flagged.any():
            summary["highest"] = _highest(folder / "results.csv", scores)
        summary["warnings"] = [f"{f['title']}: {f['text']}" for f in findings or [] if f["level"] == "warning"]
        if found is not None:
            record = cards_record(found, inputs, kept.joined("predicted"), flagged, detector.extractor.trusted_texts)
            folders.write_json(folder / CARDS, record)
            summary["cards"] = in_summary(record)
            summary["statements"].append(statement(record))
        cards = build_cards(detector, inputs, scores, flagged)
        judge = detector.judge
        folders.write_json(
            folder / "report.json",
            {
                "threshold": judge.threshold,
                "threshold_held_by": holders(detector),
                "calibration_scores": [float(s) for s in np.sort(judge.calibration_scores)],
                "roc": _roc(inputs, kept, target, detector.classes),
                "diagnostics": findings or [],
                "layers": {kind: names for kind, names in detector.explainer.layer_names.items() if names},
                "layer_kinds": _layer_kinds(detector),
                "layer_range": _layer_range(detector),
                "sampling": detector.extractor.summary or None,
                **cards,
            },
        )
        folders.write_json(
            folder / "run.json",
            {
                "config": {
                    **(config or {}),
                    "preprocessing": detector.preprocessing,
                    **detector.settings.model_dump(),
                    "fdr": fdr,
                    "target": target,
                    "offline": offline,
                    "together": together,
                    **({"added": [addition.for_receipt() for addition in added]} if added else {}),
                },
                "added": [addition.model_dump() for addition in added],
                "plan": plan,
                "folder": str(Path.cwd()),
                "versions": versions(),
                "seed": detector.settings.seed,
                "parts": [{"name": kind, **PARTS[kind].words()} for kind in judge.parts],
                "fingerprints": {
                    "network": detector.network.fingerprint,
                    "trusted": detector.trusted_fingerprint,
                    "inputs": inputs.fingerprint(),
                    "results": digest_file(folder / "results.csv"),
                },
                "roles": judge.roles,
                "class_names": detector.class_names or inputs.class_names,
                "started": begun,
            },
        )
        summary["seconds"] = round(time.perf_counter() - started, 3)
        folders.write_json(folder / "summary.json", summary)
        if report is not None:
            report(folder)
        if also is not None:
            also(detector, inputs, folder)
        write_receipt(folder)
    return summary


def _stream(detector: Detector, inputs: Source, path: Path, progress: Progress | None) -> _Kept:
    kept = _Kept(detector.judge.parts)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for batch, rows, verdicts in detector.stream(inputs, progress):
            if batch.y is not None and detector.classes:
                check_labels(batch.y, detector.classes, inputs.name)
            explanation, units = detector.explainer.reconstruct(rows)
            least, raised = detector.explainer.least_explained(verdicts), verdicts.raised_by
            for i, name in enumerate(verdicts.ids):
                witnesses = detector.explainer.witnesses(explanation, units, i)[:3]
                parts = [_number(verdicts.parts[kind][i]) for kind in detector.judge.parts]
                score, p = _number(verdicts.score[i]), _number(verdicts.p_value[i])
                writer.writerow(
                    [to_cell(name), score, p, "", int(verdicts.predicted[i])]
                    + parts
                    + [raised[i], verdicts.kind[i] if verdicts.kind else ""]
                    + [_number(verdicts.kind_p[i]) if len(verdicts.kind_p) else ""]
                    + [_number(explanation.unexplained[i]), to_cell(least[i])]
                    + [to_cell(";".join(w.id for w in witnesses))]
                    + [to_cell(verdicts.copy_of[i]) if verdicts.copy_of else "", ""]
                    + [int(column[i]) for column in (batch.y, batch.truth) if column is not None]
                )
            pairs = zip(verdicts.ids, verdicts.copy_of, verdicts.copy_distance, strict=bool(verdicts.copy_of))
            kept.copies += [(name, of, float(distance)) for name, of, distance in pairs if of]
            kept.score.append(verdicts.score)
            kept.p_value.append(verdicts.p_value)
            kept.flagged.append(verdicts.flagged)
            kept.predicted.append(verdicts.predicted)
            for kind in verdicts.parts:
                kept.parts[kind].append(verdicts.parts[kind])
    return kept


def _layer_kinds(detector: Detector) -> dict[str, str]:
    """What each layer is, by its name: `features.0` is a Conv2d."""
    layers = {name for names in detector.explainer.layer_names.values() for name in names}
    modules = detector.network.module.named_modules(remove_duplicate=False)
    return {name or ROOT: type(module).__name__ for name, module in modules if (name or ROOT) in layers}


def _highest(results: Path, scores: np.ndarray) -> list[dict[str, Any]]:
    """The inputs with the highest scores, for whoever wants to look where nothing is flagged."""
    ranks = {int(i): rank for rank, i in enumerate(np.argsort(-scores, kind="stable")[:HIGHEST])}
    found: dict[int, dict[str, Any]] = {}
    with open(results, newline="", encoding="utf-8") as file:
        for i, row in enumerate(csv.DictReader(file)):
            if i in ranks:
                found[ranks[i]] = {"id": row["id"], "score": float(row["score"]), "p_value": float(row["p_value"])}
    return [found[rank] for rank in sorted(found)]


def _note_copies(summary: dict[str, Any], kept: _Kept) -> None:
    """Which inputs are trusted ones given again."""
    summary["n_copies"] = len(kept.copies)
    if kept.copies:
        some = ", ".join(f"{name} of {of} ({distance:.2g} away)" for name, of, distance in kept.copies[:3])
        summary["statements"].append(
            f"{len(kept.copies):,} of {summary['n']:,} inputs are copies of trusted ones, closer than those are to "
            f"each other, and never flagged: {some}{', ...' if len(kept.copies) > 3 else ''}."
        )


def _number(value: Any) -> str:
    return f"{float(value):.8g}"


def _results(
    verdicts: Path, results: Path, flagged: np.ndarray, inputs: Source, parts: list[str], cards: Cards | None
) -> None:
    """The second pass over the verdicts: who is flagged and of which kind can depend on all of them."""
    numbers = np.zeros(len(flagged), np.int64) if cards is None else cards.of
    shifted = {card.number: card.p_value for card in cards.cards if card.reading == SHIFT_LIKE} if cards else {}
    known = [name for name, values in (("y", inputs.y), ("truth", inputs.truth)) if values is not None]
    with open(verdicts, newline="", encoding="utf-8") as old, open(results, "w", newline="", encoding="utf-8") as new:
        writer = csv.writer(new)
        writer.writerow(COLUMNS + parts + MORE_COLUMNS + known)
        raised_by, kind, kind_p, copy_of, card = (
            len(COLUMNS) + len(parts) + MORE_COLUMNS.index(name)
            for name in ("raised_by", "kind", "kind_p", "copy_of", "card")
        )
        for row, flag, number in zip(csv.reader(old), flagged, numbers.tolist(), strict=True):
            row[3] = "true" if flag else "false"
            row[raised_by] = row[raised_by] if flag else ""
            row[card] = str(number) if number else ""
            if not (flag or row[copy_of]):
                row[kind] = row[kind_p] = ""
            elif row[kind] == MECHANISM and number in shifted:
                # Its card shows what the input alone does not: the pile has shifted.
                row[kind], row[kind_p] = UNSURE, _number(shifted[number])
            writer.writerow(row)
    verdicts.unlink()


def _summary(
    detector: Detector,
    inputs: Source,
    kept: _Kept,
    flagged: np.ndarray,
    fdr: float | None,
    target: int | str | None,
) -> dict[str, Any]:
    judge, classes = detector.judge, detector.classes
    summary: dict[str, Any] = {
        "n": len(flagged),
        "n_flagged": int(flagged.sum()),
        **summary_of(detector, len(flagged), fdr),
    }
    if draws := detector.extractor.summary:
        summary["n_sampling"] = len(judge.roles.get("sampling", []))
        names = ("estimator", "draws", "chains", "settings", "bank", "verdict")
        summary["sampling"] = {name: draws[name] for name in names}
    if inputs.truth is not None:
        # Labels of a network without classes are tasks: no answer is right or wrong by them.
        y = inputs.y if classes else None
        summary |= evaluate(
            kept.joined("score"), flagged, inputs.truth, kept.joined("predicted"), y, target, classes,
            len(judge.calibration_scores), judge.fpr_in_force,
        )  # fmt: skip
        kinds = {kind: np.concatenate(values) for kind, values in kept.parts.items() if values}
        keep = np.ones(len(flagged), bool)
        if inputs.y is not None and target is not None:
            keep = masked(inputs.truth, kept.joined("predicted"), inputs.y, target, classes)
        summary["auroc_parts"] = {kind: auroc(values[keep], inputs.truth[keep]) for kind, values in kinds.items()}
    return summary


def _roc(inputs: Source, kept: _Kept, target: int | str | None, classes: int) -> dict[str, Any] | None:
    if inputs.truth is None:
        return None
    scores = kept.joined("score")
    curves: dict[str, Any] = {"all": thinned_roc(scores, inputs.truth), "masked": None}
    if inputs.y is not None and target is not None:
        keep = masked(inputs.truth, kept.joined("predicted"), inputs.y, target, classes)
        curves["masked"] = thinned_roc(scores[keep], inputs.truth[keep])
    return curves


def _layer_range(detector: Detector) -> dict[str, list[list[float]]]:
    """1st, 50th and 99th percentile of each layer's deviation over held-out fit samples."""
    score = detector.judge.scores_[0]
    return {
        kind: np.quantile(per_layer_deviation(part.fit_residuals_), [0.01, 0.5, 0.99], axis=0).T.tolist()
        for kind, part in getattr(score, "parts_", {}).items()
        if part.part.layers is not None
    }
