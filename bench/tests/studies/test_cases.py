"""Cases: what is written, that no image has two roles, that roles of cases share none, that failures leave nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from covary.errors import CovaryError
from covary_bench.images import attacks, datasets
from covary_bench.studies import anomalies, cases


class Blocks(nn.Module):
    """Predicts the class drawn in the first row: image i of class c has pixel c of row 0 at 255."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 0, :10] + 0.01 * x.mean((1, 2, 3))[:, None]


def made_up(n: int) -> datasets.Images:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, n)
    x = rng.integers(0, 200, (n, 32, 32, 3), dtype=np.uint8)
    x[np.arange(n), 0, y] = 255
    return datasets.Images(x, y, [f"img-{i:05d}" for i in range(n)])


@pytest.fixture
def made_up_world(monkeypatch):
    """CIFAR-10's place taken by made-up images, and a network that reads them, so that no data is needed."""
    images = made_up(8_000)
    monkeypatch.setitem(datasets.DATASETS, "cifar10-test", lambda: images)
    owner = anomalies.AttackedNetwork(
        Blocks(), "m:f", Path("w"), "cifar10-test", (0.1,) * 3, None, 5, attacks.trigger("grid")
    )
    monkeypatch.setattr(cases, "attacked_network", lambda network, cache, seed: owner)
    return images


def read(folder: Path) -> tuple[dict, dict, dict]:
    with (
        np.load(folder / "trusted.npz", allow_pickle=False) as t,
        np.load(folder / "inputs.npz", allow_pickle=False) as i,
    ):
        return dict(t), dict(i), json.loads((folder / "case.json").read_text())


def test_a_backdoor_case_is_what_it_says(made_up_world, tmp_path):
    trusted, inputs, facts = read(cases.build("grid", tmp_path / "cases"))
    by_id = {name: k for k, name in enumerate(made_up_world.id)}
    assert trusted["x"].shape == (1_400, 32, 32, 3)
    assert inputs["x"].dtype == np.uint8
    assert np.bincount(inputs["truth"]).tolist() == [800, 800]
    assert len(set(trusted["id"]) | set(inputs["id"])) == 3_000, "every image has one role"
    assert not np.array_equal(inputs["truth"], np.sort(inputs["truth"])), "inputs come in random order"
    for x, y, name, truth in zip(inputs["x"], inputs["y"], inputs["id"], inputs["truth"], strict=True):
        source = made_up_world.x[by_id[name]][None]
        assert y == made_up_world.y[by_id[name]]
        assert np.array_equal(x[None], attacks.trigger("grid")(source) if truth else source)
        assert not (truth and y == 5), "triggered images come from other classes"
    assert (facts["target"], facts["mean"], facts["std"], facts["accuracy"]) == (5, [0.1] * 3, None, 1.0)


def test_fewer_trusted_samples_are_judged_on_the_same_inputs(made_up_world, tmp_path):
    _, inputs, _ = read(cases.build("grid", tmp_path))
    few, same, facts = read(cases.build("grid-10", tmp_path))
    assert np.bincount(few["y"]).tolist() == [10] * 10
    assert facts["n_trusted"] == 100
    assert all(np.array_equal(inputs[key], same[key]) for key in inputs)
    assert not set(few["id"]) & set(same["id"])


def test_rare_classes_are_filled_up_with_images_that_have_no_other_role(made_up_world, monkeypatch, tmp_path):
    rare = np.flatnonzero(made_up_world.y == 9)[30:]
    labels = made_up_world.y.copy()
    labels[rare] = 0
    images = datasets.Images(made_up_world.x, labels, made_up_world.id)
    monkeypatch.setitem(datasets.DATASETS, "gtsrb-test", lambda: images)
    owner = anomalies.AttackedNetwork(
        Blocks(), "m:f", Path("w"), "gtsrb-test", target=5, trigger=attacks.trigger("grid")
    )
    monkeypatch.setattr(cases, "attacked_network", lambda network, cache, seed: owner)
    full, inputs, _ = read(cases.build("grid", tmp_path))
    few, _, _ = read(cases.build("grid-10", tmp_path))
    assert (full["y"] == 9).sum() < 10, "the class must be rare for this test to say anything"
    assert np.bincount(few["y"]).tolist() == [10] * 10
    assert not set(few["id"]) & set(inputs["id"])


def test_tuning_and_held_out_cases_share_no_image(made_up_world, tmp_path):
    seen = {}
    for name in ("tune-fgsm", "tune-blur", "tune-vgg-badnets", "grid", "noise", "grid-10"):
        trusted, inputs, _ = read(cases.build(name, tmp_path))
        seen.setdefault(cases.CASES[name].role, set()).update([*trusted["id"], *inputs["id"]])
    assert not seen["tuning"] & seen["held-out"]


def test_adversarial_cases_are_float_and_come_from_correct_images(made_up_world, tmp_path):
    trusted, inputs, facts = read(cases.build("tune-fgsm", tmp_path))
    assert inputs["x"].shape == (1_600, 3, 32, 32)
    assert inputs["x"].dtype == trusted["x"].dtype == np.float32
    assert 0 <= inputs["x"].min() <= inputs["x"].max() <= 1
    by_id = {name: k for k, name in enumerate(made_up_world.id)}
    source = made_up_world.x[[by_id[name] for name in inputs["id"]]].transpose(0, 3, 1, 2) / 255
    moved = np.abs(inputs["x"] - source).max((1, 2, 3))
    assert np.all(moved[inputs["truth"] == 0] < 1e-6)
    assert np.all((moved[inputs["truth"] == 1] > 0.02) & (moved[inputs["truth"] == 1] <= 8 / 255 + 1e-6))
    assert facts["kind"] == "adversarial"


def test_foreign_images_have_no_class_and_digits_get_a_frame(made_up_world, monkeypatch, tmp_path):
    digits = datasets.Images(np.full((900, 28, 28, 1), 7, np.uint8), np.zeros(900, int), [f"d{i}" for i in range(900)])
    monkeypatch.setitem(datasets.DATASETS, "mnist-test", lambda: digits)
    _, inputs, _ = read(cases.build("tune-digits", tmp_path))
    foreign = inputs["x"][inputs["truth"] == 1]
    assert foreign.shape == (800, 32, 32, 3)
    assert np.all(foreign[:, 2:-2, 2:-2] == 7)
    assert foreign.sum() == 800 * 28 * 28 * 3 * 7
    assert set(inputs["y"][inputs["truth"] == 1].tolist()) == {datasets.NO_CLASS}


def test_seeds_repeat_and_differ(made_up_world, tmp_path):
    first, again, other = (read(cases.build("noise", tmp_path / str(k), seed))[1] for k, seed in enumerate((0, 0, 1)))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["id"], other["id"])


def test_too_few_images_leave_nothing_behind(made_up_world, monkeypatch, tmp_path):
    monkeypatch.setitem(datasets.DATASETS, "cifar10-test", lambda: made_up(5_000))
    with pytest.raises(CovaryError, match="anomalies"):
        cases.build("grid", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_command_line_lists_selects_and_refuses(made_up_world, tmp_path, capsys):
    assert cases.main(["list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(cases.CASES)
    assert cases.main(["build", "noise", "--out", str(tmp_path)]) == 0
    arguments = cases.scan_arguments(tmp_path / "noise")
    assert arguments[:4] == ["--model", "m:f", "--weights", str(Path("w").resolve())]
    assert arguments[-4:] == ["--mean", "0.1,0.1,0.1", "--target", "5"]
    assert cases.main(["build", "gird", "--out", str(tmp_path)]) == 2
    assert "unknown case 'gird'" in capsys.readouterr().err
    assert set(cases.select("all")) == set(cases.CASES)
    assert all(name.startswith("tune-") for name in cases.select("tuning"))
