"""The methods of scikit-learn's outlier detectors: their signs, and the parts of check_estimator that apply."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_outlier_detector
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks
from torch import nn

import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.scoring.calibration import conformal


class AnyWidth(nn.Module):
    """Three classes from as many numbers as scikit-learn's checks happen to give."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))

    def forward(self, x):
        return self.body(nn.functional.adaptive_avg_pool1d(x.unsqueeze(1), 6).squeeze(1))


class Unlabelled(Detector):
    """Leaves `y` aside: the checks' classes are not those of the network."""

    def fit(self, trusted, y=None, **others):
        return super().fit(trusted, **others)


# Not among them, and why: fewer than 20 trusted inputs, or numbers that are no array (refused, in covary's own words);
# `score`, which gives verdicts here; attributes set in __init__; fit_predict equal to predict (trusted inputs given
# again are told as copies, and never flagged).
APPLY = (
    "check_valid_tag_types", "check_estimator_repr", "check_get_params_invariance",
    "check_estimators_unfitted", "check_estimators_fit_returns_self", "check_fit_check_is_fitted",
    "check_readonly_memmap_input", "check_f_contiguous_array_estimator", "check_dict_unchanged",
    "check_methods_sample_order_invariance", "check_n_features_in",
    "check_estimators_pickle",
)  # fmt: skip


@pytest.mark.parametrize("name", APPLY)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_check_estimator(name):
    getattr(estimator_checks, name)("Detector", Unlabelled(AnyWidth().eval(), conformal="split", fpr=0.1))


def few() -> tuple[np.ndarray, np.ndarray]:
    """Some of the trusted digits."""
    x, y = tiny.trusted()
    return x[:120], y[:120]


@pytest.fixture(scope="module")
def crossed() -> Detector:
    """One whose trusted inputs all calibrate, at a rate that some of them exceed."""
    return Detector(tiny.trained(), conformal="cross", fpr=0.05).fit(few())


@pytest.fixture(scope="module")
def odd() -> np.ndarray:
    return tiny.inputs()[0]


def test_signs(fitted, odd):
    verdicts = fitted.score(odd)
    decision, scores = fitted.decision_function(odd), fitted.score_samples(odd)
    np.testing.assert_array_equal(fitted.predict(odd) == -1, verdicts.flagged)
    np.testing.assert_array_equal(decision < 0, verdicts.flagged)
    np.testing.assert_allclose(scores, -verdicts.score, atol=1e-9)  # one split
    np.testing.assert_allclose(decision, scores - fitted.offset_, atol=1e-9)
    assert is_outlier_detector(fitted)


def test_with_five_scores_the_sign_is_still_the_verdict(odd):
    detector = Detector(tiny.trained(), conformal="cross", fpr=0.2, per_class=True).fit(few())
    assert len(set(detector.judge.groups_.values())) > 1
    odd = odd[60:140]
    np.testing.assert_array_equal(detector.decision_function(odd) < 0, detector.score(odd).flagged)


def test_margins_are_the_order_statistic_and_agree_with_p():
    rng = np.random.default_rng(0)
    calibration, folds, queries = rng.normal(size=50), np.arange(50) % 5, rng.normal(1, 1, (5, 40))
    for rate in (0.02, 0.1, 0.3):
        found = conformal.margins(queries, calibration, folds, rate)
        j = int(rate * 51 + 1e-9)
        slow = [sorted(calibration - queries[folds, i])[-j] for i in range(40)]
        np.testing.assert_allclose(found, slow)
        np.testing.assert_array_equal(found < 0, conformal.cross_conformal_p(queries, calibration, folds) <= rate)
    assert np.isinf(conformal.margins(queries, calibration, folds, 0.001)).all()


def test_fit_predict_says_which_trusted_inputs_stand_out():
    x = few()[0].copy()
    x[:3] = tiny.odd(x[:3])
    detector = Detector(tiny.trained(), conformal="cross", fpr=0.05)
    found = detector.fit_predict(x)
    assert (found == -1).sum() == int(0.05 * 121)
    assert (found[:3] == -1).all()
    with pytest.raises(CovaryError, match="conformal=cross"):
        Detector(tiny.trained(), conformal="split").fit_predict(x)


def test_a_detector_that_has_seen_nothing_is_not_fitted_to_scikit_learn_either():
    with pytest.raises(NotFittedError, match="call fit"):
        Detector(tiny.trained()).predict(tiny.inputs()[0])


def test_clone_and_set_params(fitted):
    other = clone(fitted)
    assert not hasattr(other, "judge")
    assert other.settings == fitted.settings
    changed = other.set_params(fpr=0.2)
    assert changed is other
    assert (changed.settings.fpr, changed.settings.conformal) == (0.2, "split")
    assert changed.get_params()["fpr"] == 0.2


@pytest.mark.parametrize("which", ["named", "module"])
def test_a_pickle_is_the_folder(which, fitted, crossed, odd):
    detector = fitted if which == "named" else crossed
    other = pickle.loads(pickle.dumps(detector)) if which == "named" else copy.deepcopy(detector)
    np.testing.assert_array_equal(other.score(odd[:20]).score, detector.score(odd[:20]).score)
    assert other.network.fingerprint == detector.network.fingerprint
    fresh = pickle.loads(pickle.dumps(Detector("tiny:trained", fpr=0.2)))
    assert (fresh.settings.fpr, hasattr(fresh, "judge")) == (0.2, False)


def test_a_shallow_copy_shares_everything(fitted):
    other = copy.copy(fitted)
    assert other.judge is fitted.judge
    assert other.extractor is fitted.extractor
