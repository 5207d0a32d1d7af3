"""Rows along draws inside a detector: fit, save, load, stream; sigma, early stop, half precision, layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr

import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.features.sampled.extractor import SampledExtractor, Watch, first_of, trial_scores
from covary.features.sampled.samplers import SamplingPlan
from covary.models.functional import functional_network
from covary.runs.figures.quality import auroc
from covary.scoring.couplings import couple
from covary.scoring.rows import Batch
from covary.settings import Settings
from covary_bench.traces import record_traces

X, Y, TRUTH = tiny.inputs()
FEW = {"estimator": "gaussian", "draws": 24, "sigma": 0.05, "batch_size": 256}


def as_floats(x):
    return torch.from_numpy(x).float().div(255).unsqueeze(1)


@pytest.fixture(scope="module")
def sampled():
    """A detector along Gaussian draws; not to be changed."""
    return Detector("tiny:trained", **FEW).fit(tiny.trusted())


def test_rows_are_the_traces_of_the_plan(sampled):
    assert sampled.settings.score == "class-max"
    plan = SamplingPlan("gaussian", {"sigma": 0.05}, steps=24, burn_in=0, batchnorm="frozen")
    network = functional_network(tiny.trained())
    traces = record_traces(network, plan, as_floats(X), [str(i) for i in range(len(X))])
    moved = traces.moved("margin")
    rows = sampled.rows(sampled.open(X))
    np.testing.assert_allclose(rows.functional["trace"] * np.sqrt(24), (moved - moved.mean(0)).T, atol=1e-4)
    found = couple("cosine", rows, rows)
    np.testing.assert_allclose(found, np.corrcoef(moved.T), atol=1e-4)
    # Class-max Pearson by hand.
    reference, means = sampled.judge.reference, []
    across = couple("cosine", rows, reference)
    means = [across[:, reference.predicted == c].mean(1) for c in range(10)]
    np.testing.assert_allclose(sampled.score(X).score, -np.max(means, axis=0), atol=1e-9)
    value = auroc(sampled.score(X).score, TRUTH)
    assert value is not None
    assert value > 0.8


def test_saved_with_its_draws_and_loaded_to_the_bit(sampled, tmp_path):
    folder = sampled.save(tmp_path / "detector")
    stored = load_file(folder / "draws.safetensors")
    assert {name.partition("/")[0] for name in stored} == {"delta", "along"}
    loaded = Detector.load(folder, trust_code=True)
    np.testing.assert_array_equal(loaded.score(X).score, sampled.score(X).score)
    assert loaded.extractor.notes == sampled.extractor.notes
    assert loaded.extractor.summary == sampled.extractor.summary
    assert loaded.settings == sampled.settings
    again = Detector.load(loaded.save(tmp_path / "again"), trust_code=True)
    np.testing.assert_array_equal(again.judge.calibration_scores, sampled.judge.calibration_scores)
    full = (folder / "draws.safetensors").read_bytes()
    (folder / "draws.safetensors").write_bytes(full[:-9] + b"\x00" + full[-8:])
    with pytest.raises(CovaryError, match=r"draws\.safetensors"):
        Detector.load(folder, trust_code=True)


def test_any_number_of_inputs_streams_and_grouping_changes_rounding_alone(sampled, tmp_path):
    loaded = Detector.load(sampled.save(tmp_path / "detector"), batch_size=70, trust_code=True)
    sizes = [len(rows) for _, rows, _ in loaded.stream(X)]
    assert sizes[:2] == [70, 70]
    np.testing.assert_allclose(loaded.score(X).score, sampled.score(X).score, atol=1e-4)
    alone = loaded.score(X[5:6]).score
    np.testing.assert_allclose(alone, sampled.score(X).score[5:6], atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"draws_at_once": 5}, {"channels_last": True}, {"half_draws": True}, {"amp": "bf16"}],
    ids=lambda options: next(iter(options)),
)
def test_speed_options_hardly_move_scores(options, sampled):
    other = Detector("tiny:trained", **FEW, **options).fit(tiny.trusted())
    found, expected = other.score(X).score, sampled.score(X).score
    if "amp" in options:
        assert spearmanr(found, expected)[0] > 0.95
    else:
        np.testing.assert_allclose(found, expected, atol=1e-3)
    if "half_draws" in options:
        message = other.extractor.summary["bank"]
        assert message["precision"] == "float16"
        assert message["bytes"] == message["full_bytes"] / 2
        assert 0 < message["score_error"] < 1e-2
        assert message["spearman"] > 0.999
        assert any("in float16" in note for note in other.extractor.notes)
        assert all(delta.dtype == torch.float16 for delta in other.extractor.bank.deltas.values())


def test_sigma_is_chosen_on_trusted_accuracy_and_told():
    detector = Detector("tiny:trained", estimator="gaussian", draws=8, batch_size=256).fit(tiny.trusted())
    sigma = detector.extractor.summary["settings"]["sigma"]
    assert f"sigma = {sigma:g}, the largest of the grid" in detector.extractor.notes[0]
    module, (x, y) = tiny.trained(), tiny.trusted()
    calm = (module(as_floats(x)).argmax(1).numpy() == y).mean()

    def accuracy(size: float) -> float:
        found = []
        for seed in range(6):
            moved = tiny.trained()
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for p in moved.parameters():
                    p.add_(size * torch.randn(p.shape, generator=generator))
            found.append((moved(as_floats(x)).argmax(1).numpy() == y).mean())
        return float(np.mean(found))

    assert accuracy(sigma) > calm - 0.1
    assert accuracy(3 * sigma) < calm - 0.05


def test_layers_move_one_at_a_time_when_asked():
    detector = Detector("tiny:trained", **{**FEW, "draws": 12}, layerwise=True).fit(tiny.trusted())
    assert detector.settings.score == "profile"
    assert list(detector.trusted_rows.functional) == list(detector.extractor.layers) == ["0", "1", "3", "6"]
    value = auroc(detector.score(X).score, TRUTH)
    assert value is not None
    assert value > 0.8
    assert set(detector.score(X[:5]).parts) == {"functional"}
    assert detector.extractor.passes == 1 + 12 * 4


def test_drawing_stops_when_the_ranking_is_stable(sampled):
    easy = Detector("tiny:trained", **{**FEW, "draws": 400}, stop_when_stable=0.5).fit(tiny.trusted())
    assert len(easy.extractor.bank) == 50
    assert any("stopped after 50 of 400 draws" in note for note in easy.extractor.notes)
    # The draws that were taken are the first of those that would have been.
    name = next(iter(sampled.extractor.bank.deltas))
    torch.testing.assert_close(easy.extractor.bank.deltas[name][:24], sampled.extractor.bank.deltas[name])
    hard = Detector("tiny:trained", **{**FEW, "draws": 60}, stop_when_stable=1.0).fit(tiny.trusted())
    assert len(hard.extractor.bank) == 60


def test_stability_compares_half_of_the_draws_with_all(sampled):
    extractor = sampled.extractor
    x = as_floats(tiny.trusted()[0][:90])
    watch = Watch(extractor, x, 0.9)
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(90, 64)).astype(np.float32)
    watch.values = [torch.from_numpy(signal[:, s][None]) for s in range(32)]
    assert not watch.stable(), "too few draws to tell"
    # The second half repeats the first: correlations, hence ranks, are the same.
    watch.values = [torch.from_numpy(signal[:, s % 32][None]) for s in range(64)]
    assert watch.stable()
    watch.values = [torch.from_numpy(signal[:, s][None]) for s in range(64)]
    assert not watch.stable(), "noise ranks differently with every draw"


def test_trial_scores_use_three_disjoint_thirds(sampled):
    rows = sampled.trusted_rows.take(np.arange(61))
    found = trial_scores(rows, "mean", "cosine")
    reference, queries = (rows.take(np.arange(i, 60, 3)) for i in (0, 2))
    np.testing.assert_allclose(found, -couple("cosine", queries, reference).mean(1))


def test_first_of_cuts_the_last_batch():
    batches = [Batch([f"{i}{j}" for j in range(4)], torch.zeros(4, 2)) for i in range(3)]
    assert [len(batch) for batch in first_of(batches, 6)] == [4, 2]
    assert [len(batch.x) for batch in first_of(batches, 100)] == [4, 4, 4]


def test_own_observables_and_missing_draws_are_refused():
    with pytest.raises(CovaryError, match="a function as the observable of the estimator gaussian"):
        Detector("tiny:trained", estimator="gaussian", observable="test_detector:largest_logit")
    extractor = SampledExtractor(tiny.trained(), lambda out: out, Settings.checked(estimator="gaussian"))
    with pytest.raises(CovaryError, match="no draws were taken"):
        extractor.rows(Batch(["a"], as_floats(X[:1])))
