"""Our scores are those of pytorch-ood 0.4.0 on the same network, images and settings, to 1e-5.

The package asks for torchvision when it is installed and when it is imported, for its data sets and pretrained
networks. Its detectors do without, so the test imports those alone and needs no more than

    pip install --no-deps pytorch-ood==0.4.0
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from covary import Detector
from covary.data.source import open_data
from covary_bench.baselines import mahalanobis
from covary_bench.baselines.images import Material, Probe, baseline
from covary_bench.baselines.images.knn import last_features

VERSION = "0.4.0"
nac = sys.modules["covary_bench.baselines.images.nac"]


class Network(nn.Module):
    """Two convolutions with batch normalisation, the mean over positions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 20, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(20, 4)

    def forward(self, x):
        return self.head(self.features(x))


@pytest.fixture(scope="module")
def theirs():
    """The detectors of pytorch-ood, without the rest of the package."""
    spec = importlib.util.find_spec("pytorch_ood")
    if spec is None or importlib.metadata.version("pytorch-ood") != VERSION:
        pytest.skip(f"pytorch-ood {VERSION} is not installed: pip install --no-deps pytorch-ood=={VERSION}")
    package = ModuleType("pytorch_ood")
    package.__path__ = list(spec.submodule_search_locations or [])
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "pytorch_ood"}
    for name in before:
        del sys.modules[name]
    sys.modules["pytorch_ood"] = package
    yield importlib.import_module("pytorch_ood.detector")
    for name in [name for name in sys.modules if name.split(".")[0] == "pytorch_ood"]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture(scope="module")
def ours() -> tuple[Material, torch.Tensor, torch.Tensor]:
    """Rows and features of 150 trusted and 60 query images, with the images."""
    torch.manual_seed(3)
    network = Network().eval()
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.mul_(6)
    x, queries = torch.rand(150, 3, 8, 8), torch.rand(60, 3, 8, 8) * torch.rand(60, 3, 1, 1)
    sources = [open_data(images.numpy()) for images in (x, queries)]
    detector = Detector(network)
    rows, asked = (detector.rows(source) for source in sources)
    probe = Probe(network, x, queries, rows.predicted)
    features = [last_features(network, source.batches(64)) for source in sources]
    return Material(rows, asked, *features, probe=probe), x, queries


def near(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), rtol=1e-5, atol=1e-5)
    assert np.ptp(np.asarray(expected, float)) > 1e-3


def test_answers(theirs, ours):
    material, _, queries = ours
    with torch.no_grad():
        logits = material.network.module(queries)
    near(baseline("energy")(material), theirs.EnergyBased.score(logits))
    # Ours is the log-odds of the same probability, which does not saturate.
    near(-expit(-baseline("max softmax")(material)), theirs.MaxSoftmax.score(logits))


@pytest.mark.parametrize("k", [1, 10])
def test_nearest_neighbours(theirs, ours, k):
    material, _, _ = ours
    detector = theirs.KNN(None, k=k).fit_features(*features_of(material))
    near(baseline("KNN on features")(material, k=k), detector.predict_features(torch.tensor(material.query_features)))


def features_of(material: Material) -> tuple[torch.Tensor, torch.Tensor]:
    """Trusted features with predicted classes, numbered without gaps."""
    classes = np.unique(material.trusted.predicted, return_inverse=True)[1]
    return torch.tensor(material.trusted_features), torch.from_numpy(classes)


def test_mahalanobis(theirs, ours, monkeypatch):
    """Theirs has the sum of squares in place of the covariance, half the distance, and no shrinkage."""
    material, _, _ = ours
    # Long features, against which the ridge that either adds is nothing.
    longer = replace(material, trusted_features=100 * material.trusted_features.astype(float),
                     query_features=100 * material.query_features.astype(float))  # fmt: skip
    z, classes = features_of(longer)
    detector = theirs.Mahalanobis(None)
    monkeypatch.setattr(torch, "zeros", lambda *a, real=torch.zeros, **k: real(*a, **k).double())
    detector.fit_features(z, classes)
    monkeypatch.undo()
    expected = 2 * len(z) * detector.predict_features(torch.tensor(longer.query_features))
    shrunk = baseline("Mahalanobis")(longer)
    monkeypatch.setattr(mahalanobis, "ledoit_wolf", lambda x, assume_centered: (x.T @ x / len(x), 0.0))
    near(baseline("Mahalanobis")(longer), expected)
    assert np.corrcoef(shrunk, expected)[0, 1] > 0.9


def test_scores_of_features_and_the_last_layer(theirs, ours):
    material, _, _ = ours
    head, query = material.network.module.head, torch.tensor(material.query_features)
    trusted, classes = features_of(material)
    near(baseline("NNGuide")(material), theirs.NNGuide(nn.Identity(), head).fit_features(trusted, classes)
         .predict_features(query).detach())  # fmt: skip
    near(baseline("fDBD")(material), theirs.fDBD(nn.Identity(), head).fit_features(trusted).predict_features(query))
    flat = nn.Sequential(nn.Flatten(), head)
    scale = theirs.SCALE(nn.Identity(), flat, percentile=0.85)
    near(baseline("SCALE")(material), scale.predict_feature_maps(query[:, :, None, None]).detach())


def test_neuron_activation_coverage(theirs, ours, monkeypatch):
    """With our steepness and full count, and equal bins, where theirs are dense near 0 and 1."""
    material, x, queries = ours
    probe = material.network
    layers = nac.watched(probe.module)
    steepness = [float(1 / trusted.std()) for trusted in nac.influences(probe, x, layers)]
    module = sys.modules["pytorch_ood.detector.nac"]
    monkeypatch.setattr(module, "_bin_indices_geometric", module._bin_indices)
    detector = theirs.NACUE(probe.module, layers, nac.BINS, steepness, int(len(x) / nac.BINS), device="cpu")
    detector.fit(DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=50))
    found, expected = baseline("NAC")(material), detector.predict(queries).numpy()
    # Batches add up in another order, so a state at the edge of a bin may fall on either side of it.
    assert np.mean(np.abs(found - expected) > 1e-5) < 0.1
    assert np.abs(found - expected).max() < 0.1
