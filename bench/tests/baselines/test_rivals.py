"""TED++, QUE, AdaDetect, PSBD, BaDExpert and scores out of distribution against slow loops over their formulas."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional

from core_cases import synthetic
from covary.scoring.rows import Rows
from covary_bench.baselines.images import BASELINES, Material, Probe, baseline
from covary_bench.baselines.images.badexpert import triangle
from covary_bench.baselines.images.head import Head
from covary_bench.baselines.images.quantum_entropy import scores as quantum_scores
from covary_bench.baselines.images.scale import scaled
from covary_bench.baselines.images.ted_plus import adaptive_ranks
from covary_bench.scoring import scores_path

# The package's own names are those of the scores.
unlearning, coverage, dropping = (
    sys.modules[f"covary_bench.baselines.images.{name}"] for name in ("badexpert", "nac", "psbd")
)  # fmt: skip
NEW = ("TED++", "NAC", "SCALE", "NNGuide", "fDBD", "QUE", "AdaDetect", "PSBD", "BaDExpert")


class Small(nn.Module):
    """A convolution with batch normalisation, the mean over positions, a hidden and an answering linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.norm, self.flatten = nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.Flatten()
        self.hide, self.say = nn.Linear(5 * 36, 12), nn.Linear(12, 3)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            self.norm.weight.add_(1)
        self.eval()

    def features(self, x):
        return torch.relu(self.hide(self.flatten(torch.relu(self.norm(self.see(x))))))

    def forward(self, x):
        return self.say(self.features(x))


@cache
def seen() -> Material:
    """Sixty trusted and thirty query images that the network above has answered."""
    generator = torch.Generator().manual_seed(1)
    trusted, queries = (2 * torch.rand(n, 1, 8, 8, generator=generator) for n in (60, 30))
    module = Small()
    probe = Probe(module, trusted, queries, np.zeros(60, np.int64))
    answers = [probe.predicted(x) for x in (trusted, queries)]
    probe = replace(probe, trusted_labels=answers[0])
    with torch.no_grad():
        features = [module.features(x).numpy() for x in (trusted, queries)]
    none = [np.zeros((n, 1), np.float32) for n in (60, 30)]
    rows = [Rows([f"{k}{i}" for i in range(len(a))], a, np.zeros(len(a)), {}, x)
            for k, a, x in zip("tq", answers, none, strict=True)]  # fmt: skip
    return Material(*rows, *features, probe=probe)


def test_the_network_says_more_than_one_thing():
    assert len(np.unique(seen().queries.predicted)) > 1


def test_each_has_a_file_of_scores_of_its_own():
    assert set(NEW) <= set(BASELINES)
    assert len({scores_path(Path(), name) for name in BASELINES}) == len(BASELINES)


# TED++ ---------------------------------------------------------------------------------------------------------------


def rank_by_hand(query, label, trusted, classes, skip=None) -> float:
    """How many trusted samples are nearer than the nearest of its class; the last rank outside that one's tube."""
    others = [j for j in range(len(trusted)) if j != skip]
    own = [j for j in others if classes[j] == label]
    if not own:
        return len(trusted) - 1
    v = min(own, key=lambda j: math.dist(query, trusted[j]))
    mates = [j for j in range(len(trusted)) if classes[j] == label and j != v]
    if mates:
        reach = sorted(math.dist(trusted[v], trusted[j]) for j in mates)
        if math.dist(query, trusted[v]) > reach[min(math.ceil(0.5 * (len(mates) + 1)), len(mates)) - 1]:
            return len(trusted) - 1
    return sum(math.dist(query, trusted[j]) < math.dist(query, trusted[v]) for j in others)


def test_locally_adaptive_ranks_by_loops():
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2, 3], [9, 8, 2, 1])
    trusted = rng.normal(size=(20, 3)) + 1.5 * classes[:, None]
    queries, labels = rng.normal(size=(300, 3)) * 2 + 1.5, rng.integers(0, 5, 300)
    by_hand = [rank_by_hand(*pair, trusted, classes) for pair in zip(queries, labels, strict=True)]
    np.testing.assert_array_equal(adaptive_ranks(queries, labels, trusted, classes), by_hand)
    assert len(set(by_hand)) > 3
    itself = [rank_by_hand(trusted[i], classes[i], trusted, classes, skip=i) for i in range(20)]
    np.testing.assert_array_equal(adaptive_ranks(trusted, classes, trusted, classes, same=True), itself)


def strange(share: float = 0.5, n: int = 150) -> tuple[Material, np.ndarray]:
    """Trusted rows of four classes; queries of which a share is of a foreign mechanism."""
    reference, fit = (synthetic(200, seed, prefix=str(seed))[0] for seed in (1, 2))
    odd = round(share * n)
    queries = Rows.concatenate(
        [synthetic(n - odd, 3, prefix="c")[0], synthetic(odd, 4, foreign=True, prefix="a")[0]]
    )  # fmt: skip
    trusted = Rows.concatenate([reference, fit])
    features = trusted.latent["block.fc"], queries.latent["block.fc"]
    return Material(trusted, queries, *features, reference, fit), np.repeat([0, 1], [n - odd, odd])


@pytest.mark.parametrize("name", ["TED++", "QUE", "AdaDetect"])
def test_another_mechanism_stands_out(name):
    material, truth = strange()
    assert roc_auc_score(truth, baseline(name)(material)) > 0.9


# The pile together ---------------------------------------------------------------------------------------------------


def test_quantum_entropy_by_its_formula():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(50, 4)) * [3, 1, 1, 0.5]
    covariance = sum(np.outer(x, x) for x in h) / 50
    exponent = 4 * (covariance - np.eye(4)) / (np.linalg.norm(covariance, 2) - 1)
    q, power = np.eye(4), np.eye(4)
    for n in range(1, 60):  # the exponential's own series
        power = power @ exponent / n
        q = q + power
    expected = [x @ q @ x / np.trace(q) for x in h]
    np.testing.assert_allclose(quantum_scores(h), expected, rtol=1e-9)
    short = 0.1 * h
    np.testing.assert_allclose(quantum_scores(short), np.square(short).sum(1) / 4)


@pytest.mark.parametrize("name", ["QUE", "AdaDetect", "Spectral Signatures in the pool"])
def test_a_pile_in_another_order_gives_the_same_scores(name):
    """Calibration samples and inputs are treated alike, so ranks among them are exact."""
    material, _ = strange()
    order = np.random.default_rng(0).permutation(len(material.queries))
    turned = replace(
        material, queries=material.queries.take(order), query_features=material.query_features[order]
    )  # fmt: skip
    found, again = baseline(name)(material), baseline(name)(turned)
    if name == "AdaDetect":  # trees draw samples by place: alike, not equal
        assert np.corrcoef(found[order], again)[0, 1] > 0.95
    else:
        np.testing.assert_allclose(found[order], again, rtol=1e-6)


def test_who_is_scored_by_adadetect_was_not_in_the_tree():
    """A clean pile looks like trusted samples: a forest that knows its members by heart would tell them apart."""
    material, _ = strange(share=0.0)
    scores = baseline("AdaDetect")(material)
    assert abs(np.mean(scores) - 0.5) < 0.1


def test_spectral_signatures_in_the_pool_turn_round_where_anomalies_are_most_of_a_class():
    rng = np.random.default_rng(0)
    known, clean, odd = (rng.normal(size=(n, 6)) for n in (60, 40, 300))
    odd[:, 0] += 6

    def found(anomalies: int, name: str, **settings) -> float:
        x = np.concatenate([clean, odd[:anomalies]])
        rows = [Rows([str(i) for i in range(n)], np.zeros(n, np.int64), np.zeros(n), {}, np.zeros((n, 0)))
                for n in (60, len(x))]  # fmt: skip
        truth = np.repeat([0, 1], [40, anomalies])
        return float(roc_auc_score(truth, baseline(name)(Material(*rows, known, x), **settings)))

    assert found(8, "Spectral Signatures in the pool") > 0.99
    assert found(300, "Spectral Signatures in the pool") < 0.1
    assert found(300, "Spectral Signatures", centre="trusted") > 0.99


# Out of distribution -------------------------------------------------------------------------------------------------


def test_scale_by_loops():
    material = seen()
    head, expected = Head.of(material.network), []
    for z in material.query_features.astype(float):
        largest = sorted(z)[-max(len(z) - round(0.85 * len(z)), 1) :]
        ratio = sum(z) / sum(largest) if sum(largest) > 0 else 0.0
        logits = [sum(w * v * math.exp(ratio) for w, v in zip(row, z, strict=True)) + b
                  for row, b in zip(head.weight, head.bias, strict=True)]  # fmt: skip
        expected.append(-math.log(sum(map(math.exp, logits))))
    np.testing.assert_allclose(baseline("SCALE")(material), expected, rtol=1e-9)
    np.testing.assert_array_equal(scaled(np.zeros((1, 4))), np.zeros((1, 4)))


def test_nnguide_by_loops():
    material = seen()
    head = Head.of(material.network)

    def energy(z):
        return math.log(sum(math.exp(w @ z + b) for w, b in zip(head.weight, head.bias, strict=True)))

    expected = []
    for z in material.query_features.astype(float):
        similar = [energy(t) * (z @ t) / (np.linalg.norm(z) * np.linalg.norm(t))
                   for t in material.trusted_features.astype(float)]  # fmt: skip
        expected.append(-energy(z) * np.mean(sorted(similar)[-10:]))
    np.testing.assert_allclose(baseline("NNGuide")(material), expected, rtol=1e-6)


def test_fdbd_by_loops():
    material = seen()
    head, middle, expected = Head.of(material.network), material.trusted_features.astype(float).mean(0), []
    for z in material.query_features.astype(float):
        logits = head.weight @ z + head.bias
        f = int(np.argmax(logits))
        boundaries = [
            (logits[f] - logits[c]) / np.linalg.norm(head.weight[f] - head.weight[c]) for c in range(3) if c != f
        ]
        expected.append(-np.mean(boundaries) / np.linalg.norm(z - middle))
    np.testing.assert_allclose(baseline("fDBD")(material), expected, rtol=1e-6)


def test_nac_by_loops():
    material = seen()
    module, states = material.network.module, []
    for x in (material.network.trusted, material.network.queries):
        of_layers: list[list[list[float]]] = [[], []]
        for image in x:
            see = module.see(image[None]).detach().requires_grad_(True)
            hide = module.hide(module.flatten(torch.relu(module.norm(see))))
            p = module.say(torch.relu(hide)).softmax(1)
            divergence = sum(1 / 3 * torch.log(1 / 3 / p[0, c]) for c in range(3))
            gradients = torch.autograd.grad(divergence, [see, hide])
            of_layers[0].append([float((see[0, c] * gradients[0][0, c]).detach().mean()) for c in range(5)])
            of_layers[1].append([float(v) for v in (hide * gradients[1])[0].detach()])
        states.append([np.array(layer) for layer in of_layers])
    expected = np.zeros(30)
    for known, asked in zip(*states, strict=True):

        def place(v: float, known=known) -> int:
            return min(int(coverage.BINS / (1 + math.exp(-v / known.std()))), coverage.BINS - 1)

        for i, own in enumerate(asked):
            shares = []
            for neuron, value in enumerate(own):
                there = sum(place(v) == place(value) for v in known[:, neuron])
                shares.append(min(there / (60 / coverage.BINS), 1))
            expected[i] -= np.mean(shares)
    # A state at the edge of a bin may fall on either side of it.
    found = baseline("NAC")(material)
    assert np.mean(np.abs(found - expected) > 1e-9) < 0.1
    np.testing.assert_allclose(found, expected, atol=0.25)


# Weights that change -------------------------------------------------------------------------------------------------


def test_psbd_by_its_formula_and_its_rate_is_matched_on_trusted_images(monkeypatch):
    material = seen()
    probe = material.network
    ratios = {rate: dropping.shift_ratio(probe, probe.trusted, rate, 0) for rate in dropping.RATES}
    assert max(ratios.values()) > 0.3
    monkeypatch.setattr(dropping, "SHIFT", ratios[0.3])
    rate = dropping.chosen_rate(probe, 0)
    assert rate == min(r for r in ratios if ratios[r] >= ratios[0.3])
    monkeypatch.setattr(dropping, "SHIFT", 2.0)
    assert ratios[dropping.chosen_rate(probe, 0)] == max(ratios.values())
    monkeypatch.setattr(dropping, "SHIFT", ratios[0.3])
    scores = baseline("PSBD")(material)
    generator, module, x = torch.Generator().manual_seed(1), probe.module, probe.queries
    lost = np.zeros((30, 3))
    with torch.no_grad():
        plain = module(x).softmax(1)
        for _ in range(3):
            hidden = torch.relu(module.norm(module.see(x))).flatten(1)
            hidden = hidden * (torch.rand(hidden.shape, generator=generator) >= rate) / (1 - rate)
            hidden = torch.relu(module.hide(hidden))
            hidden = hidden * (torch.rand(hidden.shape, generator=generator) >= rate) / (1 - rate)
            lost += ((plain - module.say(hidden).softmax(1)) / 3).numpy()
    np.testing.assert_allclose(-scores, lost[np.arange(30), plain.argmax(1)], atol=1e-5)
    assert not module.hide._forward_pre_hooks


def test_badexpert_leaves_the_network_alone_and_forgets_its_task():
    material = seen()
    probe = material.network
    before = {name: value.clone() for name, value in probe.module.state_dict().items()}
    expert, tuned = unlearning.expert(probe, 3, 0), unlearning.tuned(probe, 0)
    assert all(torch.equal(value, probe.module.state_dict()[name]) for name, value in before.items())
    right = [float((probe.logits(probe.trusted, module).argmax(1) == probe.trusted_labels).mean())
             for module in (expert, tuned)]  # fmt: skip
    assert right[0] < 0.9 <= right[1]
    x, y = np.array([0.9, 0.1, 0.9, 0.4]), np.array([0.1, 0.9, 0.9, 0.4])
    by_hand = [-min(2 * b / a, (1 - a) / max(0.5 - b, 1e-8)) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(triangle(x, y), by_hand)
    assert triangle(x, y)[0] > triangle(x, y)[1]  # the expert sure and the tuned copy not: a trigger


def test_the_first_step_of_unlearning_by_hand(monkeypatch):
    material = seen()
    probe = material.network
    monkeypatch.setattr(unlearning, "UNLEARNING_STEPS", 1)
    monkeypatch.setattr(unlearning, "UNLEARNING_ROUNDS", 1)
    found = unlearning.expert(probe, 3, 0)
    module = Small().train()
    wrong = torch.from_numpy((probe.trusted_labels + 1) % 3)
    functional.cross_entropy(module(probe.trusted), wrong).backward()
    # Adam's first step is the rate against the gradient's sign.
    weight = module.say.weight - unlearning.UNLEARNING_RATE * module.say.weight.grad.sign()
    torch.testing.assert_close(found.say.weight, weight, atol=1e-6, rtol=0)
