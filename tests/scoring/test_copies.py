"""Copies of trusted inputs are told as copies and never flagged; nothing else is taken for one."""

import numpy as np
import pytest

import tiny
from covary.scoring import copies as copies_
from covary.scoring.copies import Copies
from covary.scoring.rows import Rows


def random_rows(n, seed=0, layers=3, width=5, classes=2):
    rng = np.random.default_rng(seed)
    functional = {f"l{i}": rng.normal(size=(n, width)).astype(np.float32) for i in range(layers)}
    predicted = rng.integers(0, classes, n)
    return Rows([f"{seed}-{i}" for i in range(n)], predicted, np.zeros(n), functional, np.ones((n, layers)))


def nearest_by_a_loop(rows, trusted, themselves=False):
    """Names and distances, pair by pair."""
    names, distances = [], []
    for i in range(len(rows)):
        best = ("", np.inf)
        for j in range(len(trusted)):
            if rows.predicted[i] == trusted.predicted[j] and not (themselves and i == j):
                a = np.concatenate([rows.functional[k][i] for k in rows.functional]).astype(float)
                b = np.concatenate([trusted.functional[k][j] for k in rows.functional]).astype(float)
                d = np.linalg.norm(a - b) / max(np.linalg.norm(a), np.linalg.norm(b))
                best = min(best, (trusted.ids[j], d), key=lambda pair: pair[1])
        names.append(best[0])
        distances.append(best[1])
    return names, np.array(distances)


def test_the_nearest_trusted_input_is_that_of_a_loop(monkeypatch):
    monkeypatch.setattr(copies_, "QUERIES", 7)
    monkeypatch.setattr(copies_, "TRUSTED", 11)
    trusted, rows = random_rows(40), random_rows(23, 1)
    found = Copies().fit(trusted)
    names, distances = nearest_by_a_loop(rows, trusted)
    got = found.find(rows)
    assert got.of == names
    np.testing.assert_allclose(got.distance, distances, rtol=1e-6)
    limit = nearest_by_a_loop(trusted, trusted, themselves=True)[1].min()
    assert found.limits_ == {"functional": pytest.approx(limit, rel=1e-6)}
    np.testing.assert_array_equal(got.copies, distances < limit)


def test_the_gradients_of_a_trusted_input_are_no_copy_without_its_activations():
    trusted = random_rows(40)
    trusted.latent["l0"] = np.random.default_rng(2).normal(size=(40, 6)).astype(np.float32)
    met, other = trusted.take(np.arange(10)), trusted.take(np.arange(10))
    other.latent["l0"] = other.latent["l0"] + np.float32(2.0)
    copies = Copies().fit(trusted)
    assert set(copies.limits_) == {"functional", "latent"}
    assert copies.find(met).copies.all()
    assert not copies.find(other).copies.any()
    np.testing.assert_array_equal(copies.find(other).distance, copies.find(met).distance)


def test_an_answer_that_no_trusted_input_has_makes_no_copy():
    trusted, rows = random_rows(40), random_rows(5, 1)
    rows.predicted[:] = 7
    got = Copies().fit(trusted).find(rows)
    assert (got.of, got.copies.any()) == ([""] * 5, False)
    assert np.isinf(got.distance).all()


def test_trusted_inputs_given_twice_leave_the_limit_where_it_is():
    trusted = random_rows(40)
    twice = Rows.concatenate([trusted, trusted.take([3, 4])])
    limits = Copies().fit(trusted).limits_
    assert Copies().fit(twice).limits_ == limits
    assert min(limits.values()) > 0


def test_rows_of_zeros_are_no_copies():
    trusted = random_rows(40)
    nothing = trusted.take(np.arange(5))
    for rows in nothing.functional.values():
        rows[:] = 0
    assert not Copies().fit(trusted).find(nothing).copies.any()


def noisy(x, size, seed=0):
    noise = np.random.default_rng(seed).integers(-size, size + 1, x.shape)
    return np.clip(x.astype(int) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("n", [420, 120], ids=["split", "cross-conformal"])
def test_trusted_inputs_scanned_again_are_copies_and_no_flags(n):
    from covary.detector import Detector

    x, y = tiny.trusted()
    detector = Detector(tiny.trained(), fpr=0.05).fit((x[:n], y[:n]))
    exact, near = detector.score(x[:n]), detector.score(noisy(x[:n], 1))
    assert exact.copy_of == detector.open(x[:n]).ids
    assert exact.copy_distance.max() < 1e-3
    assert not exact.flagged.any()
    assert (exact.p_value == 1).all()
    message = np.array([name != "" for name in near.copy_of])
    assert message.mean() > 0.9
    assert not near.flagged[message].any()


def test_clean_and_odd_inputs_are_judged_as_ever(fitted):
    x, _, truth = tiny.inputs()
    verdicts = fitted.score(x)
    assert verdicts.copy_of == [""] * len(x)
    assert np.isnan(verdicts.copy_distance).all()
    assert verdicts.flagged[truth == 1].mean() > 0.9
    rows = fitted.rows(fitted.open(x))
    plain = fitted.judge.scores_[0].measure(rows).score
    np.testing.assert_allclose(verdicts.score, plain)
