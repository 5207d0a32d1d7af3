"""What a detector's verdicts on a pile rest on, in the words of every summary."""

from __future__ import annotations

from typing import Any

from covary.detector import Detector
from covary.scoring.calibration import conformal


def summary_of(detector: Detector, n: int, fdr: float | None) -> dict[str, Any]:
    """Rates, sizes of the roles and statements behind verdicts on n inputs; plain values for JSON."""
    judge = detector.judge
    sizes = {role: len({name for key, names in judge.roles.items() if key.split()[0] == role for name in names})
             for role in ("reference", "fit")}  # fmt: skip
    statements = [*judge.statements, *judge.what_holds(), *detector.extractor.notes]
    if fdr is not None:
        least = conformal.least_flagged_for_fdr(fdr, judge.p_min, n)
        statements.append(
            f"Benjamini-Hochberg at rate {fdr:g} over {n} inputs: with a smallest p-value of {judge.p_min:.3g} at "
            f"least {least} inputs have to reach it before any is flagged."
        )
    return {
        "fpr_target": detector.settings.fpr,
        "fpr_in_force": judge.fpr_in_force,
        "fdr": fdr,
        "p_min": judge.p_min,
        "n_reference": sizes["reference"],
        "n_fit": sizes["fit"],
        "n_calibration": len(judge.calibration_scores),
        "calibration": judge.mode,
        "threshold_held_by": [{"id": holder.id, "score": holder.score} for holder in judge.holders],
        "score": detector.settings.score,
        "statements": statements,
    }
