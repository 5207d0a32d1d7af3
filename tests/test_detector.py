"""The detector's life: fit, score, save, load, and inputs that did not exist when it was fitted."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import covary
import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.features.gradient import ENGINES
from covary.features.survival import Survival
from covary.runs.figures.quality import auroc
from covary.scoring.couplings import COUPLINGS
from covary.scoring.scores import SCORES
from covary.settings import GradientSettings, Settings

X, Y, TRUTH = tiny.inputs()


def as_floats(x):
    return torch.from_numpy(x).float().div(255).unsqueeze(1)


def same(a, b):
    assert a.ids == b.ids
    for name in ("score", "p_value", "flagged", "predicted"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for kind in a.parts:
        np.testing.assert_array_equal(a.parts[kind], b.parts[kind])


# In five lines, from anything ----------------------------------------------------------------------------------------


def test_it_tells_odd_inputs_from_clean_ones(fitted):
    verdicts = fitted.score(X)
    value = auroc(verdicts.score, TRUTH)
    assert value is not None
    assert value > 0.95
    assert verdicts.flagged[TRUTH == 1].mean() > 0.5
    assert verdicts.flagged[TRUTH == 0].mean() < 0.1
    assert set(verdicts.parts) == {"functional", "latent", "confidence"}


TRUSTED_FORMS = {
    "arrays": lambda files: tiny.trusted(),
    "tensors": lambda files: (as_floats(tiny.trusted()[0]), torch.from_numpy(tiny.trusted()[1])),
    "dataset": lambda files: tiny.Digits(),
    "name": lambda files: "tiny:dataset",
    "path": lambda files: files / "trusted.npz",
    "path as text": lambda files: str(files / "trusted.npz"),
}


@pytest.mark.parametrize("form", TRUSTED_FORMS)
def test_trusted_data_in_every_form(form, tiny_files):
    detector = covary.Detector(tiny.trained(), conformal="split").fit(TRUSTED_FORMS[form](tiny_files))
    forms = {
        "arrays": X,
        "tensors": as_floats(X),
        "dataset": torch.utils.data.TensorDataset(as_floats(X), torch.from_numpy(Y)),
        "path": tiny_files / "inputs.npz",
    }
    verdicts = {name: detector.score(inputs) for name, inputs in forms.items()}
    for found in verdicts.values():
        assert len(found) == len(X)
        np.testing.assert_allclose(found.score, verdicts["arrays"].score, rtol=1e-5, atol=1e-5)
    assert verdicts["path"].ids[0] == "input-0"


def test_the_network_in_every_form(tiny_files):
    trusted = tiny.trusted()
    one = Detector(tiny.trained(), conformal="split").fit(trusted).score(X)
    for model, weights in (
        ("tiny:network", tiny_files / "weights.safetensors"),
        ("tiny:network", tiny_files / "weights.pt"),
        ("tiny:trained", None),
        (nn.DataParallel(tiny.trained()), None),
    ):
        same(Detector(model, weights=weights, conformal="split").fit(trusted).score(X), one)


def test_fit_returns_the_detector_and_labels_may_come_apart():
    x, y = tiny.trusted()
    detector = Detector(tiny.trained(), conformal="split")
    assert detector.fit(x, y) is detector
    assert set(detector.judge.roles) == {"reference", "fit", "calibration"}
    wrong = sum(detector.trusted_rows.predicted != y)
    assert any(f"gets {wrong} of {len(x)} trusted inputs wrong" in s for s in detector.judge.statements)


def test_labels_of_minus_one_say_that_nobody_knows():
    x, y = tiny.trusted()
    detector = Detector(tiny.trained()).fit(x, np.full_like(y, -1))
    assert not any("wrong" in statement for statement in detector.judge.statements)


def test_a_separate_calibration_set_replaces_the_split():
    x, y = tiny.trusted()
    detector = Detector(tiny.trained()).fit((x[:200], y[:200]), calibration=x[200:])
    assert len(detector.judge.calibration_scores) == len(x) - 200
    assert len(detector.judge.roles["reference"]) + len(detector.judge.roles["fit"]) <= 200


def test_few_trusted_inputs_are_ranked_across_folds():
    x, y = tiny.trusted()
    detector = Detector(tiny.trained()).fit(x[:120], y[:120])
    assert detector.judge.mode.startswith("cross-conformal")
    assert len(detector.judge.calibration_scores) == 120


def test_preprocessing_is_remembered_even_from_a_function_without_a_name():
    x, y = tiny.trusted()
    plain = Detector(tiny.trained(), conformal="split").fit(x, y).score(X)
    # Undone by the transform, so nothing may change.
    twice = Detector(tiny.trained(), conformal="split").fit(255 - x, y, transform=lambda image: 1 - image)
    np.testing.assert_allclose(twice.score(255 - X).score, plain.score, rtol=1e-3, atol=1e-3)


def test_fdr_flags_by_benjamini_hochberg(fitted):
    verdicts, every = fitted.score(X, fdr=0.2), fitted.score(X)
    order = np.argsort(every.p_value, kind="stable")
    passing = [i for i in range(len(X)) if every.p_value[order[i]] <= 0.2 * (i + 1) / len(X)]
    expected = np.zeros(len(X), bool)
    if passing:
        expected[every.p_value <= every.p_value[order[passing[-1]]]] = True
    np.testing.assert_array_equal(verdicts.flagged, expected)
    assert expected.any()


def test_evidence_names_trusted_samples(fitted):
    evidence = fitted.explain(X[:3])
    assert [e.id for e in evidence] == ["0", "1", "2"]
    assert all(e.explained_by and all(w.weight > 0 for w in e.explained_by) for e in evidence)


def test_batch_size_changes_nothing_beyond_rounding(fitted):
    one = fitted.score(X).score
    fine = Detector(tiny.trained(), conformal="split", batch_size=25).fit(tiny.trusted()).score(X).score
    np.testing.assert_allclose(fine, one, rtol=1e-5, atol=1e-5)


def test_order_changes_nothing_beyond_rounding(fitted):
    order = np.random.default_rng(1).permutation(len(X))
    np.testing.assert_allclose(fitted.score(X[order]).score, fitted.score(X).score[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{"channels_last": True}, {"engine": "exact"}])
def test_options_of_speed_change_scores_by_rounding_alone(changes, fitted):
    after = Detector(tiny.trained(), conformal="split", **changes).fit(tiny.trusted()).score(X).score
    np.testing.assert_allclose(after, fitted.score(X).score, rtol=1e-4, atol=1e-4)


def test_half_the_precision_ranks_inputs_alike():
    """Closer than other random projections do (.984 on this network)."""
    plain, half = (Detector(tiny.trained(), amp=amp).fit(tiny.trusted()).score(X).score for amp in (None, "bf16"))
    assert spearmanr(plain, half)[0] > 0.99


SKELETON = tiny.network().eval()


def largest_logit(parameters, buffers, x):
    return torch.func.functional_call(SKELETON, (dict(parameters), dict(buffers)), (x,)).max(1).values


def test_a_user_s_own_observable_needs_no_classes(tmp_path):
    detector = Detector(tiny.trained(), observable=largest_logit).fit(tiny.trusted())
    assert not any("wrong" in statement for statement in detector.judge.statements)
    value = auroc(detector.score(X).score, TRUTH)
    assert value is not None
    assert value > 0.9
    assert detector.settings.observable == f"{__name__}:largest_logit"
    folder = detector.save(tmp_path / "detector")
    same(Detector.load(folder, tiny.trained(), trust_code=True).score(X), detector.score(X))


# Memory --------------------------------------------------------------------------------------------------------------


class Endless(torch.utils.data.Dataset):
    """Many inputs, each made when it is asked for."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i >= self.n:
            raise IndexError
        return torch.from_numpy(X[i % len(X)]).float().div(255).unsqueeze(0)


def peak_of(detector, n):
    gc.collect()
    tracemalloc.start()
    for _ in detector.stream(Endless(n)):
        # In a process that has run long, cycles that nobody holds may wait for their collection.
        gc.collect()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_number_of_inputs(fitted):
    for _ in fitted.stream(Endless(192)):
        pass
    few, many = peak_of(fitted, 128), peak_of(fitted, 320)
    # Names grow, at some 200 bytes an input; its rows alone would be ten times that.
    assert sum(part.shape[1] for part in fitted.trusted_rows.functional.values()) * 4 > 2000
    assert many < few + 400 * 192


def test_a_stream_holds_one_batch(fitted):
    alive, most = [], 0
    import weakref

    for batch, rows, _ in fitted.stream(Endless(320)):
        alive += [weakref.ref(batch), weakref.ref(rows)]
        most = max(most, sum(ref() is not None for ref in alive))
        del batch, rows
    assert most <= 4


# Save and load -------------------------------------------------------------------------------------------------------


def test_loaded_equals_in_memory_to_the_bit(fitted, saved_folder):
    loaded = Detector.load(saved_folder, trust_code=True)
    same(loaded.score(X), fitted.score(X))
    assert loaded.explain(X[:2]) == fitted.explain(X[:2])
    assert loaded.judge.roles == fitted.judge.roles
    assert loaded.judge.statements == fitted.judge.statements
    assert list(loaded.thumbnails) == list(fitted.thumbnails)
    assert loaded.settings == fitted.settings


@pytest.mark.parametrize(("size", "conformal"), [(120, "cross"), (420, "split")])
@pytest.mark.parametrize("score", ["combined", "class-max"])
def test_saved_twice_is_the_same(size, conformal, score, tmp_path):
    x, y = tiny.trusted()
    detector = Detector("tiny:trained", score=score, fpr=0.05, conformal=conformal)
    detector.fit((x[:size], y[:size]), mean=0.1, std=0.9)
    again = Detector.load(detector.save(tmp_path / "a"), trust_code=True)
    third = Detector.load(again.save(tmp_path / "b"), trust_code=True)
    same(third.score(X), detector.score(X))
    assert third.preprocessing == {"mean": [0.1], "std": [0.9], "transform": None}


def test_saved_with_a_separate_calibration_set(tmp_path):
    x, y = tiny.trusted()
    detector = Detector("tiny:trained").fit((x[:200], y[:200]), calibration=x[200:])
    same(Detector.load(detector.save(tmp_path / "a"), trust_code=True).score(X), detector.score(X))


def test_without_weights_the_network_comes_along(fitted, tmp_path, tiny_files):
    folder = fitted.save(tmp_path / "bare", weights=False)
    assert not (folder / "weights.safetensors").exists()
    for detector in (
        Detector.load(folder, tiny.trained()),
        Detector.load(folder, "tiny:network", weights=tiny_files / "weights.safetensors"),
        Detector.load(folder, trust_code=True),  # its factory sets the weights itself
    ):
        same(detector.score(X), fitted.score(X))


def test_another_network_is_refused_and_both_fingerprints_are_shown(fitted, tmp_path):
    folder = fitted.save(tmp_path / "bare", weights=False)
    other = tiny.trained()
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-6
    with pytest.raises(CovaryError) as refused:
        Detector.load(folder, other)
    assert fitted.network.fingerprint[:16] in str(refused.value)
    assert covary.load_network(other).fingerprint[:16] in str(refused.value)


def test_a_module_passed_in_has_to_be_passed_in_again(tmp_path):
    folder = Detector(tiny.trained()).fit(tiny.trusted()).save(tmp_path / "a")
    with pytest.raises(CovaryError, match="does not know how to build its network"):
        Detector.load(folder, trust_code=True)
    assert len(Detector.load(folder, tiny.trained()).score(X)) == len(X)
    assert len(Detector.load(folder, "tiny:network").score(X)) == len(X)


def test_only_what_decides_no_score_may_change(saved_folder):
    assert Detector.load(saved_folder, batch_size=3, trust_code=True).settings.batch_size == 3
    with pytest.raises(CovaryError, match="fpr cannot change after fitting"):
        Detector.load(saved_folder, fpr=0.2, trust_code=True)


# What is refused -----------------------------------------------------------------------------------------------------


def test_every_setting_is_checked_before_any_work():
    for values, words in (
        ({"score": "nope"}, "unknown score 'nope'; expected one of: mean"),
        ({"coupling": "nope"}, "unknown coupling 'nope'; expected one of: "),
        ({"observable": "nope"}, "unknown observable 'nope'; expected one of: margin, nll"),
        ({"space": "nope"}, "unknown parameter space 'nope'"),
        ({"space": "modules:nope"}, "selects nothing"),
        ({"fpr": 0}, "fpr is 0; expected a number greater than 0"),
        ({"fpr": 1.5}, "fpr is 1.5; expected a number less than 1"),
        ({"batch_size": 0}, "batch_size is 0; expected a number greater than or equal to 1"),
        ({"amp": "fp8"}, "amp is 'fp8'; expected 'bf16' or 'fp16'"),
        ({"engine": "nope"}, "engine is 'nope'; expected 'hooks' or 'exact'"),
        ({"device": "nope"}, "device 'nope' cannot be used"),
        ({"speed": 3}, "unknown setting 'speed'; expected one of: observable"),
    ):
        with pytest.raises(CovaryError) as refused:
            Detector(tiny.trained(), **values)
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)


def test_settings_name_what_the_tables_hold():
    assert Settings().score in SCORES
    assert Settings().coupling in COUPLINGS
    for engine in ENGINES:
        assert Settings(engine=engine).extractor == GradientSettings(engine=engine)


def test_unfitted():
    with pytest.raises(CovaryError, match="has not seen trusted data"):
        Detector(tiny.trained()).score(X)
    with pytest.raises(CovaryError, match="has not seen trusted data"):
        Detector(tiny.trained()).save("nowhere")


def test_trusted_data_that_cannot_do():
    x, y = tiny.trusted()
    detector = Detector(tiny.trained())
    for data, words in (
        ((x[:0], y[:0]), "empty"),
        ((x[:10], y[:10]), "at least 20"),
        ((x, np.where(y == 3, 10, y)), "labels of the tuple given run from 0 to 10; expected 0 to 9"),
        ((x, np.where(y == 3, -2, y)), "run from -2 to 9"),
        ((np.where(x[:, None] > 300, 0, np.nan).astype(np.float32), y), "NaN or infinity"),
        ((np.zeros((40, 1, 3, 3), np.float32), y[:40]), "the network fails on inputs of shape (1, 3, 3)"),
        ((x, y[:-1]), "as many labels as inputs"),
    ):
        with pytest.raises(CovaryError) as refused:
            detector.fit(data)
        assert words in str(refused.value)


def test_missing_classes_are_told_and_can_be_refused():
    x, y = tiny.trusted()
    predicted = tiny.loaded().logits(as_floats(x)).argmax(1).numpy()
    detector = Detector(tiny.trained()).fit((x[predicted != 3], y[predicted != 3]))
    assert len(detector.score(X)) == len(X)
    message = [statement for statement in detector.judge.statements if "1 of 10 classes (3)" in statement]
    assert len(message) == 1
    with pytest.raises(CovaryError, match=r"answered with class 3 \(1 of 10 classes\)"):
        Detector(tiny.trained(), allow_missing_classes=False).fit((x[predicted != 3], y[predicted != 3]))


def test_inputs_that_cannot_do(fitted):
    floats = as_floats(X).numpy()
    floats[5, 0, 2, 2] = np.inf
    for data, words in (
        (np.zeros((5, 12, 12), np.uint8), "holds inputs of shape (1, 12, 12); expected (1, 8, 8)"),
        (np.zeros((5, 8, 8, 3), np.uint8), "holds inputs of shape (3, 8, 8)"),
        (floats, "input '5' of the ndarray given holds NaN or infinity"),
        ("nothing/there.npz", "nothing at nothing/there.npz"),
        (X[:0], "empty"),
        (object(), "data given as object"),
    ):
        with pytest.raises(CovaryError) as refused:
            fitted.score(data)
        assert words in str(refused.value)


def test_memory_that_does_not_suffice_is_told(fitted, monkeypatch):
    def full(batch):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(fitted.extractor, "rows", full)
    with pytest.raises(CovaryError, match=r"a batch of 64 does not fit .*; lower batch_size="):
        fitted.score(X)


# Metrics -------------------------------------------------------------------------------------------------------------


def test_a_metric_comes_from_reference_inputs_alone_and_is_saved(tmp_path):
    x, y = tiny.trusted()
    detector = tiny.detector(preconditioner="kronecker").fit((x, y))
    moments = detector.extractor.moments([], "kronecker")
    chosen = np.isin(detector.trusted_rows.ids, detector.judge.roles["reference"])
    assert 0 < chosen.sum() < len(x) / 2
    moments.add(detector.extractor._gradients(as_floats(x[chosen])).parameters)
    assert detector.extractor.metric is not None
    for layer, blocks in moments.metric(0.1).items():
        for expected, found in zip(blocks, detector.extractor.metric[layer], strict=True):
            torch.testing.assert_close(found.left, expected.left, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(found.right, expected.right, rtol=1e-3, atol=1e-4)
    same(Detector.load(detector.save(tmp_path / "d"), tiny.trained()).score(X), detector.score(X))


def test_a_metric_needs_a_trusted_set_that_can_be_split():
    x, y = tiny.trusted()
    with pytest.raises(CovaryError, match="at least 330"):
        tiny.detector(preconditioner="diagonal").fit((x[:300], y[:300]))


# Together ------------------------------------------------------------------------------------------------------------


def test_a_pile_judged_together_by_the_library(fitted):
    together = fitted.score(X, together=True)
    alone = fitted.score(X)
    assert list(together.ids) == list(alone.ids)
    assert {"pile", "pile functional", "pile latent", "pile features"} <= set(together.parts)
    seen, before = auroc(together.score, TRUTH), auroc(alone.score, TRUTH)
    assert seen is not None
    assert before is not None
    assert seen >= before - 0.01
    # The detector itself has not changed.
    same(fitted.score(X), alone)


def test_thorough_evidence_is_kept_with_the_detector(tmp_path, monkeypatch):
    # The tiny network has one normalisation, which hardly changes an answer; survival is measured all the same.
    monkeypatch.setattr("covary.features.survival.LEAST_CHANGED", 0.0)
    detector = Detector(tiny.trained(), evidence="thorough").fit(tiny.trusted())
    assert detector.trusted_rows.survival is not None
    loaded = Detector.load(detector.save(tmp_path / "detector"), tiny.trained())
    before, after = detector.score(X, together=True), loaded.score(X, together=True)
    assert "survival" in before.parts
    same(after, before)
    same(loaded.score(X), detector.score(X))


def test_what_is_amplified_is_chosen_on_inputs_that_never_calibrate(monkeypatch):
    seen = []
    choose = Survival.choose

    def spied(self, batches):
        batches = list(batches)
        seen.append(torch.cat(batches))
        return choose(self, batches)

    monkeypatch.setattr(Survival, "choose", spied)
    x, y = tiny.trusted()
    detector = Detector(tiny.trained(), evidence="thorough").fit((x, y))
    judge = detector.judge
    assert (judge.mode, len(judge.calibration_ids)) == ("cross-conformal 5-fold", 357)
    chosen = {image.numpy().tobytes() for image in (seen[0] * 255).round().to(torch.uint8)}
    held = {x[int(name)].tobytes() for name in judge.calibration_ids}
    assert len(chosen) == 63
    assert not chosen & held
    assert any("357 of 420 trusted inputs take part" in statement for statement in judge.statements)


def test_survival_that_says_nothing_is_told():
    detector = Detector(tiny.trained(), evidence="thorough").fit(tiny.trusted())
    assert any("Survival says nothing" in statement for statement in detector.judge.statements)
    assert "survival" not in detector.judge.parts


def test_thorough_evidence_needs_gradients_and_classes():
    with pytest.raises(CovaryError, match="evidence says nothing to the estimator gaussian"):
        Detector(tiny.trained(), estimator="gaussian", evidence="thorough")
    with pytest.raises(CovaryError, match="classes"):
        Detector(tiny.trained(), observable=largest_logit, evidence="thorough").fit(tiny.trusted())
