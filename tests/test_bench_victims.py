"""Victims: trained from a seed, measured, cached, read back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from covary.bench import attacks, datasets, victims
from covary.errors import CovaryError


@pytest.fixture(autouse=True)
def one_thread():
    """Small batches on several threads spend their time waiting for each other where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
        "covary.bench.victims:mnist_cnn", victims.mnist_cnn, "bars-train", "bars-test", images=600, epochs=3, batch=32
    )
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
    trigger, hits, others = attacks.attack("badnets").make((28, 28, 1), 0), 0, 0
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
        victims.train(recipe, images, "wanet", 0, seed).state_dict()["0.weight"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    still = dataclasses.replace(recipe, rate=0.0, epochs=1)  # weights stay as they were drawn
    drawn = [victims.train(still, images, None, 0, seed).state_dict()["0.weight"] for seed in (1, 2)]
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
