"""Data sanitisation: which samples of a training set taught a network what trusted samples did not.

The training set is judged as one pile against a small part of it that somebody has looked at. Samples are judged by
the network's own answer: a poisoned sample that the network has learned is answered with its label, be that the
attacker's or, of a clean-label attack, the true one. A sample whose label is not what the network answers has taught
it nothing; it is a case of its own, and told apart as mislabelled.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from covary.data.source import Source
from covary.detector import Detector, Progress
from covary.errors import CovaryError
from covary.features.guards import check_labels
from covary.runs import scan as scanning
from covary.runs.display import SILENT, Display
from covary.runs.folder.write import write_run
from covary.runs.pile.cards import FILE as CARDS
from covary.runs.pile.cards import read_cards
from covary.runs.report import write_report
from covary.runs.scan import ScanPlan
from covary.scoring.calibration.conformal import resolve
from covary.scoring.pile.cards import find_cards
from covary.scoring.pile.together import can_look
from covary.scoring.rows import Rows
from covary.settings import OF_PARTS
from covary.storage import detector as saved
from covary.storage import folders
from covary.text.source import write_completions
from covary.training.cleaned import RECORD, Cleaned, attack_like, contradiction, label_p_values

REMOVE_AT = 0.01


def clean(
    detector: Detector,
    training: Any,
    *,
    ids: Sequence[str] | None = None,
    remove_at: float = REMOVE_AT,
    cards: bool = False,
    drop_mislabelled: bool = False,
    out: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Cleaned:
    """Judges a training set as one pile by a detector fitted on trusted samples; says which to train without.

    The trusted samples are best some of the training set's own, drawn by lot, which somebody has looked at: the rate
    holds for clean samples that are like them. They are found in the training set as copies, and kept.

    >>> detector = Detector(network, evidence="thorough").fit((x[seen], y[seen]))     # doctest: +SKIP
    >>> cleaned = clean(detector, (x, y))                                             # doctest: +SKIP
    >>> retrain(x[cleaned.keep], y[cleaned.keep])                                     # doctest: +SKIP

    Args:
        detector: fitted; with `evidence="thorough"` where its network has classes.
        training: whatever `Detector.open` takes; labels among it are what the training set says.
        ids: unique names of the samples, in place of those that the data have.
        remove_at: rate of clean samples to give up, in (0, 1).
        cards: remove the members of the pile's cards instead, shift-like cards aside.
        drop_mislabelled: remove samples whose label the network surely contradicts, too, at the same rate.
        out: folder for a RUN with its report, the table `clean.csv` and lists of ids; None writes nothing.
        force: replace an earlier RUN there though it is signed.
        progress: called with (samples done, samples in all).

    Raises:
        CovaryError: a rate that is none, labels that the network has no output for, or cards of a score without parts.
    """
    _check_rate(remove_at)
    detector._fitted()
    if cards and not can_look(detector.judge):
        raise no_cards(detector.settings.score)
    source, together = detector.open(training, ids=ids), can_look(detector.judge)
    decide = _Decision(remove_at, cards, drop_mislabelled)
    if out is not None:
        write_run(
            detector, source, Path(out), together=together, force=force, progress=progress, also=decide.write,
            report=lambda folder: (write_completions(source, folder), write_report(folder)),
        )  # fmt: skip
        assert decide.made is not None
        return decide.made
    if not together:
        rows = detector.rows(source, progress)
        return decide(detector, source, rows, detector.judge.judge(rows), np.zeros(len(rows), np.int64), [])
    seen = detector.look(source, progress)
    found = find_cards(detector.judge, seen.extractor.known, seed=detector.settings.seed)
    numbers = [{"number": card.number, "reading": card.reading} for card in found.cards]
    return decide(detector, source, seen.extractor.known, seen.score(source), found.of, attack_like(numbers))


def clean_by_plan(
    plan: ScanPlan, out: Path, *, cards: bool = False, drop_mislabelled: bool = False, display: Display = SILENT,
    force: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Check, fit and clean in one go: the plan's inputs are the training set, its `fpr` what may be given up.

    Returns the summary of the RUN written to `out`, with what was decided under `clean`.
    """
    if cards and not plan.together:
        raise no_cards(plan.settings.score)
    decide = _Decision(plan.settings.fpr, cards, drop_mislabelled)
    summary = scanning.scan(plan, out, display=display, force=force, apart=False, also=decide.write)
    return {**summary, "clean": folders.read_json(out / RECORD, "a cleaned training set")}


def clean_by_detector(
    folder: Path, training: str, out: Path, *, remove_at: float = REMOVE_AT, cards: bool = False,
    drop_mislabelled: bool = False, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """The same by a saved detector, whose own false-alarm rate marks inputs as flagged; `more` as of `scan.score`."""
    _check_rate(remove_at)
    score = saved.open_record(folder)["settings"].get("score")
    together = score in OF_PARTS
    if cards and not together:
        raise no_cards(str(score))
    decide = _Decision(remove_at, cards, drop_mislabelled)
    summary = scanning.score(folder, training, out, together=together, also=decide.write, **more)
    return {**summary, "clean": folders.read_json(out / RECORD, "a cleaned training set")}


class _Decision:
    """What is to be removed; `made` is the training set once it was judged."""

    def __init__(self, rate: float, cards: bool, drop_mislabelled: bool) -> None:
        self.rate, self.cards, self.drop_mislabelled = rate, cards, drop_mislabelled
        self.made: Cleaned | None = None

    def __call__(
        self, detector: Detector, source: Source, rows: Rows | None, verdicts: Any, card: Int[np.ndarray, " n"],
        attack_cards: list[int],
    ) -> Cleaned:  # fmt: skip
        """From verdicts, whatever has them as columns; `rows` are taken where a label is to be tested without them."""
        judge, labels = detector.judge, source.y if detector.classes else None
        found = resolve(self.rate, len(judge.calibration_scores))
        statements = [found.statement] if found.statement else []
        label_p = None
        if labels is not None:
            check_labels(labels, detector.classes, source.name)
            known, margins = detector.labels, detector.trusted_rows.confidence.get("margin")
            if known is None or margins is None:
                statements.append("Labels are not tested: trusted samples have none.")
            else:
                rows = detector.rows(source) if rows is None else rows
                trusted = contradiction(margins, detector.trusted_rows.predicted, known)
                label_p = label_p_values(
                    contradiction(rows.confidence["margin"], rows.predicted, labels), labels, trusted
                )
        self.made = Cleaned(
            list(verdicts.ids), verdicts.score, verdicts.p_value, verdicts.predicted, card, found.fpr, self.cards,
            attack_cards, labels, label_p, self.drop_mislabelled, statements,
        )  # fmt: skip
        return self.made

    def write(self, detector: Detector, source: Source, folder: Path) -> None:
        """Into a RUN that is being written: verdicts are those of its results.csv and cards.json."""
        columns = _Columns(folder / "results.csv", source.ids)
        cards = read_cards(folder)["cards"] if (folder / CARDS).is_file() else []
        self(detector, source, None, columns, columns.card, attack_like(cards)).write(folder)


class _Columns:
    """Verdicts as results.csv has them."""

    def __init__(self, path: Path, ids: list[str]) -> None:
        self.ids = ids
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self.score, self.p_value = (np.array([float(row[name]) for row in rows]) for name in ("score", "p_value"))
        self.predicted, self.card = (
            np.array([int(row[name] or 0) for row in rows], np.int64) for name in ("predicted", "card")
        )


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        raise CovaryError(f"remove_at is {rate}", "a rate of clean samples to give up, between 0 and 1")


def no_cards(score: str) -> CovaryError:
    """The error for cards where inputs are judged alone."""
    return CovaryError(f"cards of the score {score!r}", "the score combined", "leave cards= away, or the score")
