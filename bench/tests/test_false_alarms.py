"""False alarms on real rows stay under the rate asked for: rare classes, ties, wrong labels, per class, FDR."""

from __future__ import annotations

import numpy as np
import pytest

from covary.scoring.calibration.splits import across, split
from covary.scoring.judge import Judge
from covary_bench.studies.false_alarms import RARE, RATES, SITUATIONS, digits, realised

ROWS = digits()
SPLITS = 60


def test_rare_classes_share_a_third_of_the_rows():
    counts = np.bincount(ROWS.predicted)
    assert len(counts) == 6 + RARE
    assert counts[6:].sum() / len(ROWS) == pytest.approx(0.30, abs=0.001)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_false_alarms_over_splits_of_real_rows(situation):
    found = realised(ROWS, situation, SPLITS)
    for rate in RATES:
        mean, error = found[str(rate)]
        # Four standard errors of the mean over splits: a false failure once in 30,000.
        assert mean <= rate + 4 * error
    assert found["0.05"][0] >= 0.05 / 4, "valid, and not by never alarming"
    assert found["fdr"] <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / SPLITS)


@pytest.mark.parametrize("n", [300, 1000])
def test_a_calibration_sample_lacks_siblings_as_often_as_a_fresh_input(n):
    alone = {"calibration": [], "fresh": []}
    for seed in range(150):
        order = np.random.default_rng([2, seed]).permutation(len(ROWS))
        trusted, fresh = ROWS.take(order[:n]), ROWS.predicted[order[n:]]
        split_roles = (across if n == 300 else split)(trusted.ids, trusted.predicted, seed)
        split_roles = split_roles[0] if isinstance(split_roles, list) else split_roles
        seen = trusted.predicted[split_roles.reference]
        alone["calibration"].append(~np.isin(trusted.predicted[split_roles.calibration], seen))
        alone["fresh"].append(~np.isin(fresh, seen))
    shares = {role: [one.mean() for one in found] for role, found in alone.items()}
    difference = np.subtract(shares["fresh"], shares["calibration"])
    assert np.mean(shares["fresh"]) > 0.005
    assert abs(difference.mean()) <= 4 * difference.std() / np.sqrt(len(difference))


def test_a_judge_keeps_the_roles_it_is_given():
    trusted = ROWS.take(np.arange(0, 1400, 2))
    first = Judge("own-class", seed=1, conformal="split").fit(trusted)
    again = Judge("own-class", seed=2).fit(trusted, roles=first.roles)
    assert again.roles == first.roles
    np.testing.assert_array_equal(again.calibration_scores, first.calibration_scores)
