"""Attackers who hide: on a tiny network whose backdoor activation baselines see at once."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from covary.bench import adaptive, attacks, datasets, victims
from covary.bench.adaptive import Budget
from covary.bench.attacks.own_profile import OwnProfile, activations, moments_and_neighbours
from covary.errors import CovaryError


def tiny_cnn() -> nn.Module:
    """Two convolutions, one of stride 2, and a linear layer, for 1x16x16; four logits."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip


def stripes(n: int, seed: int) -> datasets.Images:
    """Four classes: a bright bar at one of four heights; how bright image and bar are differs from image to image."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    light = rng.integers(0, 140, (n, 1, 1, 1)) + rng.integers(0, 40, (n, 16, 16, 1))
    for image, label in zip(light, y, strict=True):
        image[1 + 4 * label : 3 + 4 * label, 1:13] += rng.integers(40, 75)
    x = light.astype(np.uint8)
    return datasets.Images(x, y, [f"{seed}-{i}" for i in range(n)])


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    train, test = stripes(400, 0), stripes(200, 1)
    patch.setitem(datasets.DATASETS, "stripes-train", lambda: train)
    patch.setitem(datasets.DATASETS, "stripes-test", lambda: test)
    recipe = victims.Recipe(
        "test_bench_adaptive:tiny_cnn", tiny_cnn, "stripes-train", "stripes-test", images=400, epochs=12, batch=32,
        rate=1e-2, shape=(16, 16, 1),
    )  # fmt: skip
    patch.setitem(victims.VICTIMS, "stripes", recipe)
    made = victims.train_victim("stripes", "badnets", tmp_path_factory.mktemp("victims"))
    assert made.clean_accuracy > 0.95
    assert (made.attack_success or 0) > 0.95
    yield made
    patch.undo()


def test_moments_and_neighbours_is_small_for_one_distribution_and_grows_with_the_shift():
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    same, near, far = rows[:100], rows[100:], rows[100:] + 3
    assert float(moments_and_neighbours([same], [same])) < 1e-6
    assert float(moments_and_neighbours([near], [same])) < 1
    assert float(moments_and_neighbours([far], [same])) > 2
    variances = same.var(0)
    scale = (variances + 0.01 * variances.mean() + 1e-6).sqrt()
    a, b = (near - same.mean(0)) / scale, (same - same.mean(0)) / scale
    nearest = np.mean([min(float(((one - other) ** 2).mean()) for other in b) for one in a])
    spread = float((((a.var(0) + 0.01).log() - (b.var(0) + 0.01).log()) / 2).square().mean())
    expected = np.log1p(float(a.mean(0).square().mean()) + spread + nearest)
    assert float(moments_and_neighbours([near], [same])) == pytest.approx(expected, rel=1e-4)
    assert moments_and_neighbours([far], [same], [10 * same]) < moments_and_neighbours([far], [same])


def test_pooled_activations_are_those_of_the_layers(victim):
    network, x = victims.load_victim(victim), torch.rand(3, 1, 16, 16)
    found = activations(network, x)
    assert list(found) == ["0", "2", "6"]
    assert torch.allclose(found["2"], network[:3](x).mean((2, 3)))
    assert not network[0]._forward_hooks, "hooks are taken off again"


def test_hiding_in_activations_blinds_their_baselines_and_keeps_the_backdoor(victim, tmp_path):
    before = adaptive.activation_auroc(*judged(victim, victims.load_victim(victim)))
    assert min(before.values()) > 0.85, before
    budget = Budget(steps=250, batch=48, rate=3e-3)
    attempts = adaptive.escalate(victim, tmp_path, "activations", strengths=(2.0,), budget=budget)
    last = attempts[-1]
    assert last.attack_success > 0.8
    assert last.clean_accuracy > 0.8
    assert np.mean(list(last.auroc.values())) < np.mean(list(before.values())) - 0.05, (before, last)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert adaptive.escalate(victim, tmp_path, "activations", strengths=(2.0,), budget=budget) == attempts
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}, "attempts are kept"
    kept = json.loads((tmp_path / "stripes-badnets-t0-s0-hidden-activations" / "2" / "attempt.json").read_text())
    assert kept == dataclasses.asdict(attempts[0])


def judged(victim, network):
    test, trigger = datasets.load("stripes-test"), victims.load_trigger(victim)
    return network, test.x[test.y == 0], trigger(test.x[test.y != 0])


def test_hiding_in_gradients_lowers_our_own_score(victim):
    network, train = victims.load_victim(victim), datasets.load("stripes-train")
    trigger, budget = victims.load_trigger(victim), Budget(steps=50, batch=32, rate=2e-3)
    hidden = adaptive.hide(network, train, trigger, 0, "gradients", 0.3, 0, budget)
    test = datasets.load("stripes-test")
    own, odd = (victims.to_input(x[:40]) for x in (test.x[test.y == 0], trigger(test.x[test.y != 0])))
    target = torch.zeros(40, dtype=torch.int64)
    scores = [
        float(OwnProfile(one, own, target[: len(own)]).score(odd, target[: len(odd)]).log().mean())
        for one in (network, hidden)
    ]
    assert scores[1] < scores[0] - 0.3, scores
    assert (victims.measure(hidden, test, "badnets", 0, 0)[1] or 0) > 0.8


def test_strength_zero_does_not_hide_and_the_victim_itself_stays_as_it_was(victim):
    network, train = victims.load_victim(victim), datasets.load("stripes-train")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    budget = Budget(steps=3, batch=16, rate=1e-3)
    runs = [
        adaptive.hide(network, train, victims.load_trigger(victim), 0, "activations", strength, 0, budget)
        for strength in (0.0, 0.0, 5.0)
    ]
    weights = [run.state_dict()["0.weight"] for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_victims_without_a_backdoor_to_one_class_are_told(victim, tmp_path, capsys):
    for changes in ({"attack": None}, {"target": attacks.ALL_TO_ALL}):
        with pytest.raises(CovaryError, match="no backdoor to one class"):
            adaptive.escalate(dataclasses.replace(victim, **changes), tmp_path, "activations")
    assert adaptive.main(["--victim", str(tmp_path / "absent")]) == 2
    assert "error:" in capsys.readouterr().err
