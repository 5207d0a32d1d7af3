"""Half-size rows: how much is lost, and that verdicts before and after saving agree to the bit."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

import tiny
from covary.detector import Detector
from covary.scoring.rows.quantise import packed, quantise, unpacked

X, Y, TRUTH = tiny.inputs()


def test_small_and_large_rows_keep_eleven_bits() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((50, 30)) * 10.0 ** rng.integers(-20, 9, (50, 1))).astype(np.float32)
    rows[3] = 0
    numbers, scales = packed(rows)
    assert numbers.dtype == np.float16
    back = unpacked(numbers, scales)
    assert np.abs(back - rows).max(1)[3] == 0
    assert (np.abs(back - rows) <= np.abs(rows).max(1, keepdims=True) * 2.0**-11).all()


def test_packing_twice_changes_nothing(fitted: Detector) -> None:
    once = quantise(fitted.trusted_rows)
    twice = quantise(once)
    for name, part in once.functional.items():
        np.testing.assert_array_equal(part, twice.functional[name])


def test_saved_and_loaded_detectors_agree_to_the_bit_in_less_space(fitted: Detector, saved_folder, tmp_path) -> None:
    detector = tiny.detector(half_rows=True, conformal="split")
    folder = detector.save(tmp_path / "half")
    found, before, full = (d.score(X) for d in (Detector.load(folder, tiny.trained()), detector, fitted))
    np.testing.assert_array_equal(found.score, before.score)
    np.testing.assert_array_equal(found.p_value, before.p_value)
    assert spearmanr(before.score, full.score).statistic > 0.999
    assert not np.array_equal(before.score, full.score)
    sizes = [(place / "rows.safetensors").stat().st_size for place in (folder, saved_folder)]
    assert sizes[0] < 0.6 * sizes[1]
