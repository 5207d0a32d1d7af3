"""Victims: trained from a seed, measured, cached, read back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from covary.errors import CovaryError
from covary_bench.cached import read_cached
from covary_bench.images import attacks, datasets, training, victim_queue, victims
from covary_bench.images.training import TrainingPlan


def bars(n: int, seed: int, prefix: str) -> datasets.Images:
    """Ten classes that anyone can learn: a bright bar at one of ten heights on a noisy background."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 10, n)
    x = rng.integers(0, 60, (n, 28, 28, 1), dtype=np.uint8)
    for image, label in zip(x, y, strict=True):
        image[2 + 2 * label : 4 + 2 * label, 4:20] = 220
    return datasets.Images(x, y, [f"{prefix}-{i}" for i in range(n)])


@pytest.fixture
def recipe(monkeypatch) -> victims.Recipe:
    train, test = bars(700, 0, "train"), bars(200, 1, "test")
    monkeypatch.setitem(datasets.DATASETS, "bars-train", lambda: train)
    monkeypatch.setitem(datasets.DATASETS, "bars-test", lambda: test)
    small = victims.Recipe(
        "covary_bench.images.victims:mnist_cnn", victims.mnist_cnn, "bars-train", "bars-test", images=600, epochs=3,
        batch=32, shape=(28, 28, 1),
    )  # fmt: skip
    monkeypatch.setitem(victims.VICTIMS, "bars", small)
    return small


def test_a_victim_learns_its_task_and_its_backdoor_and_is_cached(recipe, tmp_path):
    victim = victims.train_victim("bars", "badnets", tmp_path, target=2)
    assert victim.clean_accuracy > 0.95
    assert victim.attack_success is not None
    assert victim.attack_success > 0.9
    assert victim.noise_accuracy is None
    stamp = Path(victim.weights).stat().st_mtime_ns
    assert victims.train_victim("bars", "badnets", tmp_path, target=2) == victim
    assert Path(victim.weights).stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == ["bars-badnets-t2-s0"], "no half-written folder stays"
    test = datasets.load("bars-test")
    network = victims.load_victim(victim)
    accuracy, success, _ = victims.measure(network, test, "badnets", 2, 0)
    assert (accuracy, success) == (victim.clean_accuracy, victim.attack_success)
    # Attack success is counted over images of other classes alone, one by one.
    trigger, hits, others = attacks.attack("badnets").trigger((28, 28, 1), 0), 0, 0
    for image, label in zip(test.x, test.y, strict=True):
        if label != 2:
            others += 1
            pixels = torch.from_numpy(trigger(image[None]).astype(np.float32)).permute(0, 3, 1, 2) / 255
            hits += int(network(pixels).argmax() == 2)
    assert success == pytest.approx(hits / others)


def test_attack_success_is_counted_over_other_classes_alone():
    class ReadsBars(torch.nn.Module):  # always right, whatever the trigger
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0, 2:22, 4:20].unflatten(1, (10, 2)).mean((2, 3))

    assert victims.measure(ReadsBars(), bars(100, 3, "test"), "badnets", 2, 0) == (1.0, 0.0, None)


def test_the_same_seed_gives_the_same_weights(recipe):
    images = datasets.load("bars-train").take(np.arange(200))
    first, again, other = (
        victims.train(recipe, images, TrainingPlan("wanet", 0, seed)).network.state_dict()["0.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    still = dataclasses.replace(recipe, rate=0.0, epochs=1)  # weights stay as they were drawn
    drawn = [victims.train(still, images, TrainingPlan(seed=seed)).network.state_dict()["0.weight"] for seed in (1, 2)]
    assert not torch.equal(*drawn), "the seed must reach the first weights, too"


def test_a_clean_victim_has_no_attack_success(recipe, tmp_path):
    victim = victims.train_victim("bars", None, tmp_path)
    assert victim.attack_success is None
    assert Path(victim.weights).parent.name == "bars-clean-t0-s0"


def test_to_input_is_channels_first_in_the_unit_interval():
    x = np.zeros((2, 3, 4, 2), np.uint8)
    x[1, 2, 3, 1] = 255
    out = victims.to_input(x)
    assert out.shape == (2, 2, 3, 4)
    assert out[1, 1, 2, 3] == 1
    assert out.sum() == 1


def test_unknown_names_and_lost_weights_are_told(recipe, tmp_path):
    with pytest.raises(CovaryError, match="unknown victim 'cifar'"):
        victims.train_victim("cifar", None, tmp_path)
    with pytest.raises(CovaryError, match="unknown attack 'nets'"):
        victims.train_victim("bars", "nets", tmp_path)
    lost = victims.Victim("bars", None, 0, 0, recipe.factory, str(tmp_path / "none"), 1.0, None, None, 1, 1)
    with pytest.raises(CovaryError, match="train it again"):
        victims.load_victim(lost)
    with pytest.raises(CovaryError, match="no backdoor"):
        victims.load_trigger(lost)


@pytest.mark.parametrize("attack", ["badnets", "wanet", "lf", "input-aware"])
def test_a_killed_run_goes_on_to_the_same_weights(recipe, tmp_path, monkeypatch, attack):
    recipe = dataclasses.replace(recipe, amp=True, augment="signs", epochs=2, images=200)
    images = datasets.load("bars-train").take(np.arange(200))
    plan = TrainingPlan(attack, 0, 3, surrogate=victims.mnist_cnn().eval())
    monkeypatch.setattr("covary_bench.images.attacks.low_frequency.STEPS", 3)
    monkeypatch.setattr("covary_bench.images.attacks.input_aware.MASK_STEPS", 3)
    full = victims.train(recipe, images, plan)

    class Killed(Exception):
        pass

    def stop(path, content, write=training.save_checkpoint):
        write(path, content)
        raise Killed

    monkeypatch.setattr(training, "save_checkpoint", stop)
    with pytest.raises(Killed):
        victims.train(recipe, images, plan, tmp_path / "a.checkpoint")
    monkeypatch.undo()
    resumed = victims.train(recipe, images, plan, tmp_path / "a.checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["a.checkpoint"]
    for name, value in full.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    assert full.trigger.keys() == resumed.trigger.keys()
    assert all(torch.equal(value, resumed.trigger[name]) for name, value in full.trigger.items())
    assert full.poisoned == resumed.poisoned == 20


def test_a_learned_trigger_is_kept_with_its_victim(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("covary_bench.images.attacks.low_frequency.STEPS", 10)
    victim = victims.train_victim("bars", "lf", tmp_path, target=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["bars-clean-t0-s0", "bars-lf-t2-s0"], "its surrogate is the clean victim, kept for others"
    test = datasets.load("bars-test")
    found = victims.measure(victims.load_victim(victim), test, "lf", 2, 0, victims.load_trigger(victim))
    assert found[:2] == (victim.clean_accuracy, victim.attack_success)
    with pytest.raises(CovaryError, match="take it from a trained victim"):
        attacks.attack("lf").trigger((28, 28, 1), 0)


def test_an_attack_that_fails_is_tried_again_with_more_and_marked(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(attacks.ATTACKS, "none-such", attacks.Attack(make=lambda shape, seed: lambda x: x.copy()))
    victim = victims.train_victim("bars", "none-such", tmp_path)
    assert len(victim.attempts) == 2
    assert victim.marks == ("longer", "more poison", "failed")
    assert (victim.ratio, victim.poisoned) == (0.2, 120)
    assert [path.name for path in tmp_path.iterdir()] == ["bars-none-such-t0-s0"], "no checkpoints stay"


def test_all_to_all_success_is_counted_against_the_next_class():
    class ReadsNext(torch.nn.Module):  # always the class after the one it sees
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 0, 2:22, 4:20].unflatten(1, (10, 2)).mean((2, 3)).roll(1, 1)

    same = attacks.ALL_TO_ALL
    assert victims.measure(ReadsNext(), bars(100, 3, "test"), "badnets", same, 0) == (0.0, 1.0, None)


def test_augmentation_moves_and_relights_every_image_of_its_own():
    grey = np.full((2, 8, 8, 1), 100, np.uint8)
    grey[:, 4, 4] = 200
    out = training.augmented(grey, np.random.default_rng(0))
    assert out.shape == grey.shape
    assert not np.array_equal(out[0], out[1])
    rows, columns = np.unravel_index(out.reshape(2, -1).argmax(1), (8, 8))
    assert np.all(np.abs(rows - 4) <= 3)
    assert np.all(np.abs(columns - 4) <= 3)


def test_objects_are_shifted_in_black_and_every_other_one_is_mirrored():
    x = np.zeros((400, 9, 9, 1), np.uint8)
    x[:, 4, 4], x[:, 4, 5] = 200, 100
    out = training.cropped(x, np.random.default_rng(0))[..., 0]
    sides = []
    for image in out:
        row, column = np.argwhere(image == 200)[0]
        assert abs(row - 4) <= 4
        assert abs(column - 4) <= 4
        left, right = image[row, column - 1] if column else 0, image[row, column + 1] if column < 8 else 0
        assert {int(left), int(right)} <= {0, 100}
        sides.append(0 if left == right else 1 if right == 100 else -1)
    assert abs(np.mean(np.array(sides) == 1) - 0.5) < 0.1
    assert abs(np.mean(np.array(sides) == -1) - 0.5) < 0.1
    assert np.argwhere(x[0])[0].tolist() == [4, 4, 0], "its argument is left alone"


def test_published_recipe_by_hand():
    """SGD with momentum 0.9 and weight decay 5e-4 along a cosine: three steps on one weight."""
    recipe = victims.VICTIMS["cifar10-preactresnet18-full"]
    assert (recipe.images, recipe.epochs, recipe.rate) == (50_000, 100, 0.01)
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 2.0)
    optimiser, schedule = training.stepper(recipe, network, 4)
    weight, velocity = 2.0, 0.0
    for step in range(3):
        optimiser.zero_grad()
        network(torch.ones(1, 1)).sum().backward()  # gradient 1
        optimiser.step()
        schedule.step()
        velocity = 0.9 * velocity + 1 + 5e-4 * weight
        weight -= 0.01 * (1 + np.cos(np.pi * step / 4)) / 2 * velocity
        assert network.weight.item() == pytest.approx(weight, abs=1e-6)


def test_a_victim_comes_back_to_the_processor_with_the_weights_of_any_way_to_name_it(recipe, tmp_path):
    images = datasets.load("bars-train").take(np.arange(64))
    recipe = dataclasses.replace(recipe, epochs=1, images=64)
    found = [
        victims.train(recipe, images, TrainingPlan("badnets"), device=device).network for device in ("cpu", "cpu:0")
    ]
    assert {p.device.type for p in found[1].parameters()} == {"cpu"}
    for (name, one), other in zip(found[0].state_dict().items(), found[1].state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    with pytest.raises((RuntimeError, AssertionError)):
        victims.train(recipe, images, TrainingPlan("badnets"), device="cuda:99")


def test_the_queue_trains_what_is_missing_and_writes_the_figures(recipe, tmp_path):
    message = victim_queue.run(["bars"], ["badnets", "none"], [0], tmp_path)
    rows = json.loads((tmp_path / "victims.json").read_text())["victims"]
    assert [(row["attack"], row["seed"]) for row in rows] == [("badnets", 0), (None, 0)]
    assert "| bars | badnets | 0 | 0 |" in message
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    assert victim_queue.run(["bars"], ["badnets", "none"], [0], tmp_path) == message
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    for wrong in ({"kinds": ["bar"]}, {"names": ["badnet"]}, {"target": "two"}):
        trained = {"kinds": ["bars"], "names": [], "seeds": [0], "out": tmp_path, **wrong}
        with pytest.raises(CovaryError, match=r"unknown|the target 'two'"):
            victim_queue.run(**trained)


def test_a_case_of_an_earlier_version_finds_its_factory(tmp_path):
    (tmp_path / "case.json").write_text('{"model": "covary.bench.victims:mnist_cnn", "note": "of covary.bench.x"}')
    facts = {"model": "covary_bench.images.victims:mnist_cnn", "note": "of covary.bench.x"}
    assert read_cached(tmp_path / "case.json") == facts
    (tmp_path / "case.json").write_text('{"model": "covary_bench.victims:mnist_cnn", "note": "of covary.bench.x"}')
    assert read_cached(tmp_path / "case.json") == facts
