"""Plain, separable and attending victims: covary and the baselines read them; Tiny ImageNet-20 comes from its tars."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from covary import Detector
from covary.data.source import open_data
from covary.errors import CovaryError
from covary_bench.baselines.images import BASELINES, Material, Probe
from covary_bench.baselines.images.knn import last_features
from covary_bench.images import datasets, small_networks, tiny_imagenet20
from covary_bench.images.datasets import data_folder
from covary_bench.images.small_networks import PlainVGG, SmallMobileNet, SmallViT
from covary_bench.images.victims import VICTIMS

FAMILIES = {"vgg": lambda: PlainVGG(4, 6), "mobilenet": lambda: SmallMobileNet(4), "vit": lambda: SmallViT(4)}
NEW = [kind for kind, recipe in VICTIMS.items() if recipe.factory.startswith(small_networks.__name__)]


@pytest.mark.parametrize("kind", [*NEW, "tiny20"])
def test_every_recipe_fits_its_images(kind):
    recipe = VICTIMS[kind]
    height, width, channels = recipe.shape
    module, name = recipe.factory.split(":")
    assert module == recipe.make.__module__
    assert name == recipe.make.__name__
    with torch.no_grad():
        logits = recipe.make().eval()(torch.rand(2, channels, height, width))
    assert logits.shape == (2, {"cifar10": 10, "gtsrb": 43, "tiny20": 20}[kind.split("-")[0]])


def test_the_page_tells_how_large_they_are():
    page = (Path(__file__).parents[3] / "docs" / "victims.md").read_text("utf-8")
    for family in FAMILIES:
        weights = sum(weight.numel() for weight in VICTIMS[f"cifar10-{family}"].make().parameters())
        assert any(line.startswith(f"| `{family}` |") and f"{weights:,}" in line for line in page.splitlines())


def test_every_data_set_has_three_further_families():
    assert {kind.split("-")[0] for kind in NEW} == {"cifar10", "gtsrb", "tiny20"}
    assert len(NEW) == 9


@pytest.mark.parametrize("family", FAMILIES)
def test_covary_and_the_baselines_read_it(family):
    torch.manual_seed(0)
    network = FAMILIES[family]().eval()
    with torch.no_grad():
        network.classifier.weight.mul_(20)
    rng = np.random.default_rng(0)
    x = rng.random((30, 3, 32, 32), np.float32) * rng.random((30, 3, 1, 1), np.float32)
    detector = Detector(network)
    rows = detector.rows(open_data(x))
    exact = Detector(network, engine="exact").rows(open_data(x[:2]))
    for layer, expected in exact.functional.items():
        assert np.abs(rows.functional[layer][:2] - expected).max() < 1e-3 * np.abs(expected).max(), layer
    features = last_features(network, open_data(x).batches(32))
    probe = Probe(network, torch.from_numpy(x[:20]), torch.from_numpy(x[20:]), rows.predicted[:20])
    known, queries = rows.take(np.arange(20)), rows.take(np.arange(20, 30))
    material = Material(
        known, queries, features[:20], features[20:], known.take(np.arange(10)), known.take(np.arange(10, 20)), probe
    )  # fmt: skip
    for name in ("Mahalanobis", "TED++", "NAC", "fDBD", "QUE", "PSBD"):
        scores = BASELINES[name](material)
        assert scores.shape == (10,)
        assert np.isfinite(scores).all(), name


def jpeg(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), value, np.uint8)).save(file, "JPEG", quality=100)
    return file.getvalue()


def test_photos_are_read_from_the_tar_by_synset_and_number(tmp_path, monkeypatch):
    monkeypatch.setenv("COVARY_DATA", str(tmp_path))
    with pytest.raises(CovaryError, match="no file"):
        datasets.load("tiny20-train")
    home = tmp_path / "tiny_imagenet20"
    home.mkdir()
    (home / "classes.txt").write_text("n2\tsecond, the\nn1\tfirst\n")
    with tarfile.open(home / "train.tar", "w") as packed:
        for name, value in (("n2/n2_3.JPEG", 30), ("n1/n1_10.JPEG", 20), ("n1/n1_9.JPEG", 10)):
            info = tarfile.TarInfo(name)
            info.size = len(jpeg(value))
            packed.addfile(info, io.BytesIO(jpeg(value)))
    found = datasets.load("tiny20-train")
    assert found.id == ["tiny20-n1_9", "tiny20-n1_10", "tiny20-n2_3"]
    assert found.y.tolist() == [0, 0, 1]
    assert found.x[:, 5, 5, 0].tolist() == [10, 20, 30]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["classes.txt", "train.tar"]
    with pytest.raises(CovaryError, match=r"val\.tar"):
        datasets.load("tiny20-test")


@pytest.mark.skipif(not (data_folder() / "tiny_imagenet20").is_dir(), reason="needs the photos: set COVARY_DATA")
def test_the_real_photos():
    test = tiny_imagenet20.tiny20_test()
    assert test.x.shape == (1000, 64, 64, 3)
    assert np.bincount(test.y).tolist() == [50] * 20
    assert len(set(test.id)) == 1000
