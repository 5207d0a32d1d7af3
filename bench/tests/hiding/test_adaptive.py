"""Attackers who hide: on a tiny network whose backdoor activation baselines see at once."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from covary.errors import CovaryError
from covary_bench.hiding import adaptive
from covary_bench.hiding import images as hiding
from covary_bench.hiding.images import Budget, hide
from covary_bench.images import attacks, datasets, victims
from covary_bench.images.attacks.class_profile import ClassProfile, sketched_gradients, sketches
from covary_bench.images.attacks.clean_reference import CleanLayer, quantile_distance
from covary_bench.images.attacks.own_profile import activations


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


def test_quantiles_apart_is_small_for_one_distribution_and_sees_shift_and_spread():
    rows = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    one, other = rows[:200], rows[200:]
    assert float(quantile_distance(one, one).max()) < 1e-6
    assert float(quantile_distance(one, other).max()) < 0.1
    assert float(quantile_distance(one + 2, other).min()) > 1
    assert float(quantile_distance(0.1 * one, other).min()) > 0.3, "all of them near the median is no place to hide"
    levels = (np.arange(24) + 0.5) / 24
    gap = np.quantile(one[:, 0], levels) - np.quantile(other[:, 0], levels)
    expected = np.log1p(np.mean((gap / float(other[:, 0].std())) ** 2))
    assert float(quantile_distance(one, other)[0]) == pytest.approx(expected, rel=1e-3)


def test_numbers_of_a_layer_are_its_distances():
    generator = torch.Generator().manual_seed(0)
    rows, mine, query_rows = (
        torch.randn(n, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.5]) for n in (60, 40, 5)
    )
    answers = torch.arange(60) % 2
    rows = rows + 3 * answers[:, None]
    layer = CleanLayer.of(rows, answers, mine)

    def inverse(centred: torch.Tensor) -> np.ndarray:
        moments = np.asarray(centred.T @ centred, np.float64) / (len(centred) - 1)
        return np.linalg.inv(0.98 * moments + 0.02 * np.trace(moments) / 3 * np.eye(3))

    means = [rows[answers == k].mean(0) for k in (0, 1)]
    tied = inverse(torch.cat([rows[answers == k] - means[k] for k in (0, 1)]))
    own = inverse(mine - mine.mean(0))
    deviation = mine.std(0) + 0.1 * mine.std(0).mean()
    for x, found in zip(query_rows, layer.numbers(query_rows), strict=True):
        to_class = min(float((x - m).numpy() @ tied @ (x - m).numpy()) for m in means)
        to_own = float((x - mine.mean(0)).numpy() @ own @ (x - mine.mean(0)).numpy())
        near = sorted(float(((x - z) / deviation).norm()) for z in mine)[:5]
        assert found.tolist() == pytest.approx(np.log([to_class, to_own, np.mean(near)]).tolist(), abs=1e-3)
    assert float(layer.moment_distance(mine)) < 1e-6
    assert float(layer.moment_distance(mine + 2)) > 0.2


def test_sketched_gradients_are_sketches_of_whole_ones():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
        )
        x, y = torch.randn(4, 2, 6, 6), torch.tensor([0, 2, 1, 0])
        network(x)  # gives the normalisation statistics of its own
    network.eval()
    by = sketches(network, 0)
    found = sketched_gradients(network, x, y, by)
    assert list(found) == ["0", "1", "4"]
    weights = dict(network.named_parameters())
    for i in range(4):
        logits = network(x[i : i + 1])[0]
        rest = torch.cat((logits[: y[i]], logits[y[i] + 1 :]))
        full = dict(
            zip(weights, torch.autograd.grad(logits[y[i]] - rest.logsumexp(0), list(weights.values())), strict=True)
        )
        for name, pattern in (("0", "oihw,pihw,oq->pq"), ("4", "oi,pi,oq->pq")):
            expected = torch.einsum(pattern, full[f"{name}.weight"], *by[name])
            assert torch.allclose(found[name][i], expected.flatten(), atol=1e-5)
        assert torch.allclose(found["1"][i], torch.cat((full["1.weight"], full["1.bias"])), atol=1e-5)
    assert found["0"].requires_grad
    with torch.no_grad():
        assert not sketched_gradients(network, x, y, by)["0"].requires_grad


def test_pooled_activations_are_those_of_the_layers(victim):
    network, x = victims.load_victim(victim), torch.rand(3, 1, 16, 16)
    found = activations(network, x)
    assert list(found) == ["0", "2", "6"]
    assert torch.allclose(found["2"], network[:3](x).mean((2, 3)))
    assert not network[0]._forward_hooks, "hooks are taken off again"


def test_hiding_in_activations_lowers_what_their_baselines_see_and_keeps_the_tasks(victim, tmp_path, monkeypatch):
    # So small a network has nowhere else to put a trigger: there is no blinding it, and the anchor leaves no room.
    monkeypatch.setattr(hiding, "ANCHOR", 0.0)
    test, trigger = datasets.load("stripes-test"), victims.load_trigger(victim)
    before = adaptive.activation_auroc(victims.load_victim(victim), test, trigger, 0)
    assert np.mean(list(before.values())) > 0.85, before
    budget = Budget(steps=60, batch=48, rate=1e-2)
    attempts = adaptive.escalate(victim, tmp_path, "activations", strengths=(16.0,), budget=budget)
    last = attempts[-1]
    assert last.attack_success > 0.9
    assert last.clean_accuracy > 0.9
    assert last.auroc["Mahalanobis by layer"] < before["Mahalanobis by layer"] - 0.05, (before, last)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert adaptive.escalate(victim, tmp_path, "activations", strengths=(16.0,), budget=budget) == attempts
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}, "attempts are kept"
    kept = json.loads((tmp_path / "stripes-badnets-t0-s0-hidden-activations" / "16" / "attempt.json").read_text())
    assert kept == dataclasses.asdict(attempts[0])


def test_hiding_pulls_no_harder_than_its_strength_and_never_against_the_tasks():
    for opposed in (False, True):
        weights = [nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0]))]
        tasks = weights[0].sum() + 2 * weights[1].sum()
        apart = (-50 if opposed else 50) * weights[0][0] + 100 * weights[0][1]
        hiding._pull(weights, tasks, apart, 2.0)
        expected, pull = np.array([1.0, 1.0, 2.0]), np.array([-50.0 if opposed else 50.0, 100.0, 0.0])
        pull = pull - min(0.0, float(pull @ expected)) / 6 * expected
        found = np.concatenate([weight.grad.numpy() for weight in weights if weight.grad is not None])
        assert found == pytest.approx(expected + 2 * pull / np.linalg.norm(pull), abs=1e-4)
    weights = [nn.Parameter(torch.tensor([1.0, 2.0]))]
    hiding._pull(weights, weights[0].sum(), -3 * weights[0].sum() + 0.5 * (weights[0][0] - weights[0][1]), 9.0)
    assert weights[0].grad is not None
    assert weights[0].grad.tolist() == pytest.approx([1.5, 0.5], abs=1e-5), "what would undo the tasks is taken out"


def test_every_attempt_begins_with_the_victim_and_the_last_needed_one_ends_it(victim, tmp_path, monkeypatch):
    weights, seen = victims.load_victim(victim).state_dict(), []

    def hide(network, images, trigger, target, hidden, strength, seed, budget):
        assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
        seen.append(strength)
        return victims.load_victim(victim)

    monkeypatch.setattr(adaptive, "hide", hide)
    judged = iter((0.9, 0.55, 0.5))
    attempts = adaptive.escalate(
        victim, tmp_path, "gradients", strengths=(1.0, 2.0, 3.0), judge=lambda *_: {"KNN": next(judged)}
    )
    assert seen == [attempt.strength for attempt in attempts] == [1.0, 2.0]
    assert [attempt.content for attempt in attempts] == [False, True]
    assert not dataclasses.replace(attempts[1], attack_success=0.5).content


def test_the_attacker_chooses_what_works_at_a_price_it_will_pay():
    def attempt(strength: float, accuracy: float, success: float) -> adaptive.Attempt:
        return adaptive.Attempt("activations", strength, accuracy, success, {})

    dear, cheap, dead = attempt(3.0, 0.5, 0.9), attempt(2.0, 0.65, 0.85), attempt(4.0, 0.7, 0.3)
    assert adaptive.choice([attempt(1.0, 0.7, 0.9), cheap, dear, dead], 0.7) == cheap
    assert adaptive.choice([dear, dead], 0.7) == dear
    assert adaptive.choice([attempt(1.0, 0.7, 0.1), dead], 0.7) == dead


def test_our_evidence_tells_triggered_inputs_from_clean_ones_and_can_be_followed_downwards(victim):
    network, train, test = victims.load_victim(victim), datasets.load("stripes-train"), datasets.load("stripes-test")
    trigger = victims.load_trigger(victim)
    x, mine, own, odd, more = (
        victims.to_input(part)
        for part in (
            train.x[:100], train.x[train.y == 0][:80], test.x[test.y == 0], trigger(test.x[test.y != 0])[:60],
            train.x[train.y == 0][80:],
        )
    )  # fmt: skip
    profile = ClassProfile(network, x, mine, 0, 7)
    assert profile.apart(odd, own).item() > 3 * profile.apart(more, own).item()
    network.requires_grad_(True)
    weight = network.get_parameter("2.weight")
    (slope,) = torch.autograd.grad(profile.apart(odd, own), weight)
    before = profile.apart(odd, own).item()
    with torch.no_grad():
        weight -= 1e-3 * slope / slope.norm()
    assert profile.apart(odd, own).item() < before
    budget = Budget(steps=3, batch=16, rate=1e-3)
    ways = [hide(network, train, trigger, 0, hidden, 4.0, 0, budget) for hidden in ("activations", "gradients")]
    assert not torch.equal(ways[0].state_dict()["0.weight"], ways[1].state_dict()["0.weight"])


def test_strength_zero_does_not_hide_and_the_victim_itself_stays_as_it_was(victim):
    network, train = victims.load_victim(victim), datasets.load("stripes-train")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    budget = Budget(steps=3, batch=16, rate=1e-3)
    runs = [
        hide(network, train, victims.load_trigger(victim), 0, "activations", strength, 0, budget)
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
