"""Over which clean inputs a false-alarm rate holds: over all of them, or over those that the network answers right.

A flag on an answer that is wrong is hardly a false alarm. Where the network is often wrong, those answers set a
threshold that only wild inputs pass.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from covary.errors import CovaryError
from covary.scoring.calibration import conformal
from covary.scoring.judge import LEAST_IN_ROLE, Judge

# name -> the clean inputs over which the rate asked for holds.
FALSE_ALARMS = {"all": "all clean inputs", "right": "clean inputs that the network answers right"}


def calibrate_on_right(judge: Judge, right: Collection[str]) -> Judge:
    """The same judge, ranking inputs among the calibration samples of these names alone; changed in place.

    Clean inputs answered right are exchangeable with calibration samples answered right, so that p-values hold over
    them; of clean inputs answered wrong more may be flagged. Looks at piles go on with all calibration samples.

    Raises:
        CovaryError: fewer than 6 such samples.
    """
    names = set(right)
    ranked = np.array([name in names for name in judge.calibration_ids])
    n = int(ranked.sum())
    if n < LEAST_IN_ROLE:
        raise CovaryError(f"{n} calibration samples that the network answers right", f"at least {LEAST_IN_ROLE}")
    judge.every_fold_, judge.ranked_ = judge.calibration_folds, ranked
    judge.calibration_ids = [name for name in judge.calibration_ids if name in names]
    for what in ("scores", "classes", "folds"):
        setattr(judge, f"calibration_{what}", getattr(judge, f"calibration_{what}")[ranked])
    resolution = conformal.resolve(judge.fpr, n)
    judge.fpr_in_force, judge.p_min = resolution.fpr, resolution.p_min
    judge.statements.append(
        f"The false-alarm rate holds over {FALSE_ALARMS['right']}: {n} of {len(ranked)} calibration samples rank."
    )
    if resolution.statement and resolution.statement not in judge.statements:
        judge.statements.append(resolution.statement)
    judge._groups()
    return judge
