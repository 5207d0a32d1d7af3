"""The methods of scikit-learn's outlier detectors, in their sign conventions: low and negative = odd, -1 = flagged."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import NotFittedError

from covary.errors import CovaryError


class NotFitted(CovaryError, NotFittedError):
    """A detector asked for verdicts before it has seen trusted data."""


class OutlierMethods:
    """What `Detector` shares with `sklearn.ensemble.IsolationForest`.

    covary's own numbers go the other way (higher = more anomalous); these three follow scikit-learn's. Here "training
    data" are trusted inputs: `fit` takes them to be clean.
    """

    # Read by scikit-learn before 1.6, which knew no tags.
    _estimator_type = "outlier_detector"
    _init_arguments: dict[str, Any]

    def predict(self, X: Any) -> Int[np.ndarray, " n"]:
        """+1 for each input that passes, -1 for each that is flagged at the false-alarm rate in force."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"]:
        """How far each input lies below its threshold, in units of the score: negative exactly where it is flagged.

        With one split that is the threshold minus the score; see `margins` for several.
        """
        own = cast(Any, self)
        own._fitted()
        return np.concatenate([own.judge.margins(rows) for _, rows in own._passes(own.open(X))])

    def score_samples(self, X: Any) -> Float[np.ndarray, " n"]:
        """`decision_function(X) + offset_`: minus the score, higher = more like trusted inputs."""
        return self.decision_function(X) + self.offset_

    @property
    def offset_(self) -> float:
        """What `score_samples` is at the threshold."""
        own = cast(Any, self)
        if not hasattr(own, "judge"):
            raise AttributeError("offset_")  # as of any estimator before it is fitted
        return -(own.judge.threshold or 0.0)

    @property
    def n_features_in_(self) -> int:
        """Numbers an input has, where inputs are rows of a table."""
        shape = getattr(self, "input_shape", None)
        if shape is None or len(shape) != 1 or not hasattr(self, "judge"):
            raise AttributeError("n_features_in_")
        return shape[0]

    def fit_predict(self, X: Any, y: Any = None) -> Int[np.ndarray, " n"]:
        """Fits on X and says which of X itself stand out: -1 for as many as calibration flags at the rate asked for.

        Every input is judged by a score that has not seen it, so all must take part in calibration.

        Raises:
            CovaryError: calibration by one split, which leaves most inputs without such a score.
        """
        own = cast(Any, self)
        source = own.open(X)
        own.fit(X, y)
        if set(own.judge.calibration_ids) != set(source.ids):
            found = f"fit_predict where {len(own.judge.calibration_ids)} of {len(source)} inputs calibrate"
            raise CovaryError(found, "all of them", "give the detector conformal=cross, or use fit, then score")
        odd = {holder.id for holder in own.judge.holders}
        return np.array([-1 if name in odd else 1 for name in source.ids])

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What the detector was made with, as scikit-learn's `clone` needs it."""
        return dict(self._init_arguments)

    def set_params(self, **params: Any) -> Any:
        """The same detector with other settings; it has to be fitted again."""
        own = cast(Any, self)
        arguments = {**self._init_arguments, **params}
        vars(own).clear()
        own.__init__(arguments.pop("model"), **arguments)
        return own

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "judge")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        inputs = InputTags(two_d_array=True, three_d_array=True, string=True)
        return Tags(estimator_type="outlier_detector", target_tags=TargetTags(required=False), input_tags=inputs)
