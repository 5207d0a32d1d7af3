"""Every baseline on a case whose answer is known: by hand, by a slow oracle, or because the network was made so."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from core_cases import synthetic
from covary.errors import CovaryError
from covary.scoring.rows import Rows
from covary_bench import traces
from covary_bench.baselines.images import BASELINES, Material, Probe, baseline, cheap
from covary_bench.baselines.images.beatrix import gram_numbers
from covary_bench.baselines.images.ibd_psc import amplified, first_depth
from covary_bench.baselines.images.published import PLAN, couplings, published, published_offline, traces_of
from covary_bench.baselines.images.ted import ranks
from covary_bench.baselines.mahalanobis import TiedGaussians
from covary_bench.images import graded_corruptions

LEFT, RIGHT, BOTH = 0, 1, 2


class Halves(nn.Module):
    """Which half of an 8x8 image is brighter; bright all over is a third class; a bright corner always says LEFT."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Conv2d(1, 3, 8)
        self.norm = nn.BatchNorm2d(3)
        self.flatten = nn.Flatten()
        self.say = nn.Linear(3, 3)
        with torch.no_grad():
            weight = torch.zeros(3, 1, 8, 8)
            weight[0, 0, :, :4], weight[1, 0, :, 4:], weight[2, 0, 7, 7] = 1 / 32, 1 / 32, 1.0
            self.see.weight.copy_(weight)
            self.see.bias.zero_()
            self.say.weight.copy_(torch.tensor([[8.0, 0.0, 90.0], [0.0, 8.0, 0.0], [20.0, 20.0, 0.0]]))
            self.say.bias.copy_(torch.tensor([0.0, 0.0, -20.0]))
        self.eval()

    def forward(self, x):
        return self.say(self.flatten(self.norm(self.see(x))))


def images(n: int, seed: int, triggered: bool = False) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = np.full((n, 1, 8, 8), 0.25, np.float32)
    for image, label in zip(x, y, strict=True):
        image[:, :, 4 * label : 4 * label + 4] = 0.45
    x += 0.03 * rng.standard_normal(x.shape).astype(np.float32)
    x[:, :, 7, 7] = 1.0 if triggered else 0.0
    return torch.from_numpy(x.clip(0, 1)), y


@cache
def halves() -> tuple[Material, np.ndarray]:
    """Trusted, clean and triggered images of the network above, with truth."""
    trusted, labels = images(60, 1)
    clean, triggered = images(40, 2)[0], images(40, 3, triggered=True)[0]
    sampling, sampling_y = images(64, 4)
    module = Halves()
    probe = Probe(
        module, trusted, torch.cat([clean, triggered]), labels, sampling=sampling, sampling_labels=sampling_y
    )  # fmt: skip
    known, query_rows = rows_of(probe, probe.trusted, "t"), rows_of(probe, probe.queries, "q")
    material = Material(
        known, query_rows, features(probe, probe.trusted), features(probe, probe.queries), known.take(np.arange(30)),
        known.take(np.arange(30, 60)), probe,
    )  # fmt: skip
    return material, np.repeat([0, 1], 40)


def test_only_those_who_look_inside_are_spared_bfloat16():
    material, truth = halves()
    exact, half = material.network, replace(material.network, half=True)
    plain, rough = exact.logits(exact.queries), half.logits(half.queries)
    assert not np.array_equal(plain, rough)
    np.testing.assert_allclose(rough, plain, atol=0.02 * np.abs(plain).max())
    np.testing.assert_array_equal(half.logits(half.queries, exact=True), plain)
    # Beatrix looks inside; STRIP's ranks move little.
    for name, moved in (("Beatrix", 0.0), ("STRIP", 0.02)):
        found = [roc_auc_score(truth, BASELINES[name](replace(material, probe=probe))) for probe in (exact, half)]
        assert abs(found[0] - found[1]) <= moved


def rows_of(probe: Probe, x: torch.Tensor, prefix: str) -> Rows:
    logits = probe.logits(x)
    none = np.zeros((len(x), 1), np.float32)
    return Rows([f"{prefix}{i}" for i in range(len(x))], logits.argmax(1), logits.max(1), {"a": none}, none)


def features(probe: Probe, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return probe.module.flatten(probe.module.see(x)).numpy()


@cache
def strange() -> tuple[Material, np.ndarray]:
    """Synthetic rows of four classes and of a foreign mechanism."""
    reference, fit = synthetic(220, 1, prefix="r")[0], synthetic(220, 2, prefix="f")[0]
    queries = Rows.concatenate([synthetic(150, 3, prefix="c")[0], synthetic(150, 4, foreign=True, prefix="a")[0]])
    trusted = Rows.concatenate([reference, fit])
    return (
        Material(trusted, queries, trusted.latent["block.fc"], queries.latent["block.fc"], reference, fit),
        np.repeat([0, 1], 150),
    )


def test_the_toy_network_is_backdoored():
    material, truth = halves()
    assert (material.queries.predicted[truth == 1] == LEFT).all()
    assert (material.network.predicted(material.network.trusted) == material.network.trusted_labels).all()


@pytest.mark.parametrize(
    "name",
    ["functional part", "latent part", "profile on activations", "KNN on features", "Mahalanobis", "TED",
     "Mahalanobis two-sided", "Mahalanobis by layer", "Mahalanobis by layer two-sided", "Activation Clustering",
     "class-max cosine", "Spectral Signatures"],
)  # fmt: skip
def test_another_mechanism_stands_out(name):
    material, truth = strange()
    assert roc_auc_score(truth, baseline(name)(material)) > 0.85


@pytest.mark.parametrize("name", ["STRIP", "SCALE-UP", "IBD-PSC", "Beatrix", "own trace, mean", "own trace, spread"])
def test_a_trigger_stands_out(name):
    material, truth = halves()
    changed = {"draws": 50} if name.startswith("own") else {}
    assert roc_auc_score(truth, baseline(name)(material, **changed)) > 0.85


@pytest.mark.parametrize("name", [name for name in BASELINES if BASELINES[name].needs != "chain"])
def test_one_finite_score_a_query_and_the_material_left_alone(name):
    material, _ = halves() if BASELINES[name].needs == "network" else strange()
    before = [t.copy() for t in (material.trusted_features, material.query_features)]
    pixels = material.probe.queries.clone() if material.probe else None
    scores = BASELINES[name](material)
    assert scores.shape == (len(material.queries),)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores, BASELINES[name](material))  # nothing drawn without a seed
    for old, new in zip(before, (material.trusted_features, material.query_features), strict=True):
        np.testing.assert_array_equal(old, new)
    if pixels is not None:
        assert torch.equal(pixels, material.probe.queries)


def test_confidence():
    material, _ = strange()
    margin, energy = (material.queries.confidence[name] for name in ("margin", "energy"))
    np.testing.assert_allclose(baseline("max softmax")(material), -margin)
    np.testing.assert_allclose(baseline("energy")(material), energy)
    norms = np.linalg.norm(material.queries.functional_norms.astype(np.float64), axis=1)
    np.testing.assert_allclose(baseline("gradient norm")(material), np.log(norms), rtol=1e-6)


def test_knn_by_hand():
    material, _ = strange()
    trusted = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    query_rows = replace(material, trusted_features=trusted, query_features=np.array([[5.0, 0.0]]))
    assert baseline("KNN on features")(query_rows, k=2)[0] == pytest.approx(np.sqrt(2))
    assert baseline("KNN on features")(query_rows, k=1)[0] == pytest.approx(0)


def test_mahalanobis_is_the_distance_to_the_nearest_class():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 4000)
    x = rng.standard_normal((4000, 2)) * [1.0, 3.0] + 10 * classes[:, None]
    fitted = TiedGaussians().fit(x, classes)
    assert fitted.nearest(np.array([[10.0, 13.0]]))[0] == pytest.approx(1.0, abs=0.1)
    assert fitted.nearest(np.array([[22.0, 20.0]]))[0] == pytest.approx(4.0, abs=0.3)


def test_two_sides_see_what_is_too_near():
    rng = np.random.default_rng(0)
    trusted = rng.standard_normal((200, 8))
    pile = np.concatenate([rng.standard_normal((50, 8)), 1e-3 * rng.standard_normal((50, 8))])
    rows = Rows([str(i) for i in range(200)], np.zeros(200, np.int64), np.zeros(200), {}, np.zeros((200, 0)))
    material = Material(rows, rows.take(np.arange(100)), trusted, pile)
    truth = np.repeat([0, 1], 50)
    assert roc_auc_score(truth, baseline("Mahalanobis")(material)) < 0.05
    assert roc_auc_score(truth, baseline("Mahalanobis two-sided")(material)) > 0.95


def test_strip_by_a_loop():
    material, _ = halves()
    probe = material.network
    chosen = np.random.default_rng([0, 11]).choice(60, 4, False)
    scores = baseline("STRIP")(material, images=4)
    for i in (0, 70):
        entropies = []
        for j in chosen:
            logits = probe.module((probe.queries[i] + probe.trusted[int(j)]).clamp(0, 1)[None]).double()
            entropies.append(torch.distributions.Categorical(logits=logits).entropy().item())
        assert scores[i] == pytest.approx(-np.mean(entropies), abs=1e-5)


def test_teco_by_a_loop():
    material, _ = halves()
    probe = material.network
    kept = probe.queries[[0, 50]]
    few = replace(material, probe=replace(probe, queries=kept))
    scores = baseline("TeCo")(few)
    pixels, first = kept.numpy(), []
    for corrupt in graded_corruptions.GRADED.values():
        changes = [probe.predicted(torch.from_numpy(corrupt(pixels, s / 5, s))) != probe.predicted(kept)
                   for s in range(1, 6)]  # fmt: skip
        first.append([next((s + 1 for s in range(5) if changes[s][i]), 6) for i in range(2)])
    np.testing.assert_allclose(scores, np.std(first, axis=0))


class Corner(nn.Module):
    """Class 1 where the corner is bright: blur undoes that at once, more light never does."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Linear(1, 2)
        with torch.no_grad():
            self.see.weight.copy_(torch.tensor([[0.0], [1.0]]))
            self.see.bias.copy_(torch.tensor([0.6, 0.0]))

    def forward(self, x):
        return self.see(x[:, :, 7, 7])


def test_teco_sees_what_some_corruptions_undo_and_others_do_not():
    x = torch.zeros(10, 1, 8, 8)
    x[5:, :, 7, 7] = 1.0
    none = Rows([""] * 10, np.zeros(10, np.int64), np.zeros(10), {}, np.zeros((10, 0)))
    probe = Probe(Corner(), x, x, np.zeros(10, np.int64))
    scores = baseline("TeCo")(Material(none, none, np.zeros((10, 1)), np.zeros((10, 1)), probe=probe))
    assert scores[5:].min() > scores[:5].max()


@pytest.mark.parametrize("name", graded_corruptions.GRADED)
def test_corruptions_are_fresh_graded_and_in_range(name):
    x = np.random.default_rng(0).random((3, 3, 32, 32)).astype(np.float32)
    kept = x.copy()
    mild, strong = (graded_corruptions.GRADED[name](x, severity, 0) for severity in (0.2, 1.0))
    np.testing.assert_array_equal(x, kept)
    assert mild.shape == x.shape
    assert strong.dtype == np.float32
    assert 0 <= strong.min() <= strong.max() <= 1
    assert 0 < np.abs(mild - x).mean() < np.abs(strong - x).mean()


def test_scale_up_counts_the_factors_that_agree():
    material, _ = halves()
    probe = material.network
    scores = baseline("SCALE-UP")(material, factors=(2, 3), data_limited=False)
    for i in (3, 60):
        agreed = [probe.predicted((n * probe.queries[[i]]).clamp(0, 1))[0] == material.queries.predicted[i]
                  for n in (2, 3)]  # fmt: skip
        assert scores[i] == np.mean(agreed)


def test_amplification_changes_a_copy_only():
    module = Halves()
    twin = amplified(module, 1, 1.5)
    assert torch.equal(twin.norm.weight, 1.5 * module.norm.weight)
    assert torch.equal(twin.see.weight, module.see.weight)
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    twin = amplified(plain, 1, 2.0)
    assert torch.equal(twin[0].weight, 2 * plain[0].weight)  # the output layer is left as it is
    assert torch.equal(twin[2].weight, plain[2].weight)
    probe = halves()[0].network
    assert first_depth(probe, 1.01, 0.6) == 1
    assert first_depth(probe, 5.0, 0.6) == 1


def test_gram_numbers_by_a_loop():
    maps = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    found = gram_numbers(maps, (1, 2))
    for i, image in enumerate(maps.double()):
        scale = image.abs().max()
        expected = []
        for order in (1, 2):
            powered = (image / scale).sign() * (image / scale).abs() ** order
            for a in range(3):
                entries = [float(powered[a] @ powered[b]) for b in range(3)]
                expected.append(float(scale**2) * sum(np.sign(e) * abs(e) ** (1 / order) for e in entries))
        np.testing.assert_allclose(found[i], expected, rtol=1e-6)


def test_ranks_by_hand():
    trusted, classes = np.array([[0.0], [1.0], [2.0], [9.0]]), np.array([0, 0, 1, 1])
    query_rows = np.array([[0.1], [1.9], [0.1], [0.1]])
    np.testing.assert_array_equal(ranks(query_rows, np.array([0, 0, 1, 7]), trusted, classes), [0, 1, 2, 4])
    np.testing.assert_array_equal(ranks(trusted, classes, trusted, classes, same=True), [0, 0, 2, 0])


@pytest.mark.parametrize("coupling", ["pearson", "ccc"])
def test_the_published_method_resumes_to_the_same_scores(coupling, tmp_path, monkeypatch):
    material, truth = halves()
    plan = replace(PLAN, steps=60, burn_in=20, thinning=2)
    full = published(material, coupling, plan)
    assert full.shape == truth.shape
    in_folder = replace(material, probe=replace(material.network, folder=tmp_path))

    class Killed(Exception):
        pass

    written = []

    def killed_after_two(*arguments):
        if len(written) == 2:
            raise Killed
        written.append(1)
        return real(*arguments)

    real = traces.run_block
    monkeypatch.setattr(traces, "run_block", killed_after_two)
    with pytest.raises(Killed):
        published(in_folder, coupling, plan)
    monkeypatch.setattr(traces, "run_block", real)
    np.testing.assert_allclose(published(in_folder, coupling, plan), full, rtol=1e-6)


def test_published_scores_by_two_loops():
    material, _ = halves()
    plan = replace(PLAN, steps=60, burn_in=20, thinning=2)
    values = traces_of(material, plan).values["nll"][0].astype(np.float64)
    trusted, query = values[:, :60], values[:, 60 + 5]
    by_class = []
    for label in (0, 1):
        own = [np.corrcoef(query, trusted[:, j])[0, 1] for j in range(60) if material.trusted.predicted[j] == label]
        by_class.append(np.mean(own))
    assert published(material, "pearson", plan)[5] == pytest.approx(-max(by_class), abs=1e-3)


def test_the_offline_variant_looks_for_trusted_neighbours(monkeypatch):
    material, truth = halves()
    plan = replace(PLAN, steps=60, burn_in=20, thinning=2)
    split = replace(
        material, reference=material.trusted.take(np.arange(25)), fit=material.trusted.take(np.arange(25, 60))
    )
    seen = []
    module = sys.modules["covary_bench.baselines.images.published"]
    monkeypatch.setattr(module, "embedded", lambda x, seed: (seen.append(x), x)[1])
    scores = published_offline(split, "ccc", plan)
    matrix = couplings(split, "ccc", plan)[:, :25]
    distances = np.linalg.norm(matrix[60 + 7] - matrix[25:60], axis=1)
    assert scores[7] == pytest.approx(np.sort(distances)[:10].mean())
    assert scores.shape == truth.shape
    assert not np.allclose(seen[0], matrix[25:])  # in an order of its own


def test_the_published_constants():
    assert (PLAN.sampler, PLAN.steps, PLAN.burn_in, PLAN.thinning, PLAN.draws) == ("rmsprop_sgld", 2000, 250, 10, 175)
    assert (PLAN.batchnorm, PLAN.chains, PLAN.minibatch, dict(PLAN.settings)) == ("drift", 1, 256, {})


def test_what_cannot_be_done_is_said():
    material, _ = strange()
    with pytest.raises(CovaryError, match="asks the network again"):
        baseline("STRIP")(material)
    with pytest.raises(CovaryError, match="no sampling data"):
        published(replace(halves()[0], probe=replace(halves()[0].network, sampling=None)))
    with pytest.raises(CovaryError, match="unknown baseline 'strip'; expected one of: max softmax"):
        baseline("strip")
    assert "STRIP" not in cheap()
    assert "TED" in cheap()
