"""Networks and outputs that cannot do are told in one sentence, by a check as by a detector; and what an output is."""

import operator
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from covary.data.source import open_data
from covary.detector import Detector
from covary.errors import CovaryError
from covary.models.network import load_network
from covary.runs.check import check
from covary.runs.check import labels as about_labels

X = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)


def net(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, classes)).eval()


def exported():
    return torch.export.export(net(), (torch.zeros(2, 6),)).module()


def quantised():
    return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.jit.script(net()), "torch.jit.script"),
        (lambda: torch.jit.trace(net(), torch.zeros(2, 6)), "torch.jit.trace"),
        (exported, "torch.export"),
        (quantised, r"layer `0` .* is quantised"),
    ],
    ids=["script", "trace", "export", "quantised"],
)
def test_networks_whose_weights_cannot_move_are_refused_as_they_are_loaded(make, words):
    with pytest.raises(CovaryError, match=words) as refused:
        load_network(make())
    assert "\n" not in str(refused.value)
    assert refused.value.remedy


class NoGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()

    @torch.no_grad()
    def forward(self, x):
        return self.inner(x)


def looked(network, data=X, **options):
    return check(load_network(network), open_data(data), **options)


def the(report, title):
    (found,) = [finding for finding in report.findings if finding.title == title]
    return found


def test_a_forward_without_gradients_is_found_by_the_check_and_the_detector():
    finding = the(looked(NoGradient()), "Gradients")
    assert finding.level == "error"
    assert "torch.no_grad()" in finding.text
    with pytest.raises(CovaryError, match="no gradient reaches the weights"):
        Detector(NoGradient(), fpr=0.1).fit(X)
    # Draws of the weights need no gradient of an input.
    assert looked(NoGradient(), draws=10).ok
    assert len(Detector(NoGradient(), fpr=0.1, estimator="gaussian", draws=8, sigma=0.01).fit(X).score(X)) == 60


def test_a_network_frozen_as_a_whole_is_taken_by_both():
    frozen = net().requires_grad_(False)
    assert looked(frozen).ok
    ours, theirs = (Detector(network, fpr=0.1).fit(X).score(X) for network in (frozen, net()))
    np.testing.assert_array_equal(ours.score, theirs.score)


class Theirs(nn.Module):
    """Fails in its own code, or in a layer that it calls, on some inputs."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.how = net(), how

    def forward(self, x):
        if self.how == "own":
            return self.inner(x) + {"a": 1}["no such key"]
        return self.inner(x.reshape(-1, 4))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("own", ("own code fails with KeyError: 'no such key'", '{"a": 1}["no such key"]')),
        ("layer", ("Layer `inner.0`",)),
    ],
)
def test_errors_of_a_forward_are_shown_as_theirs_with_their_line(how, words):
    text = next(looked(Theirs(how)).of_level("error")).text
    for word in words:
        assert word in text
    with pytest.raises(CovaryError, match=r"test_unfit_networks\.py, line .*in forward") as refused:
        Detector(Theirs(how), fpr=0.1).fit(X)
    assert "\n" not in str(refused.value)


def test_an_error_of_our_own_stays_one(monkeypatch):
    detector = Detector(net(), fpr=0.1)
    monkeypatch.setattr(detector.extractor, "rows", operator.methodcaller("nothing"))
    with pytest.raises(AttributeError, match="nothing"):
        detector.fit(X)


# What an output is taken for -----------------------------------------------------------------------------------------


def test_one_output_is_told_and_a_regression_is_told_from_its_labels():
    rng = np.random.default_rng(1)
    assert "log-odds" in the(looked(net(1)), "Output").text
    assert "--observable" in the(looked(net(1)), "Output").change
    assert the(looked(net(1), (X, rng.integers(0, 2, 60))), "Output").level == "ok"
    finding = the(looked(net(1), (X, rng.integers(0, 9, 60))), "Output")
    assert (finding.level, "predicts a number" in finding.text) == ("error", True)
    assert "--observable" in finding.change
    labels = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.rand(60))
    assert any("name no single class" in f.text for f in looked(net(1), labels).findings)


def test_labels_that_do_not_exclude_each_other_are_told():
    finding = the(looked(nn.Sequential(net(), nn.Sigmoid())), "Output")
    assert (finding.level, "exclude each other" in finding.text) == ("warning", True)
    assert "--observable" in finding.change
    assert the(looked(net()), "Output").level == "ok"


def test_dense_outputs_are_told():
    dense = nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU())
    finding = the(looked(dense, X[:, None]), "Output")
    assert finding.level == "error"
    assert "observable=" in finding.change
    tokens = nn.Sequential(nn.Unflatten(1, (6, 1)), nn.Linear(1, 1))
    finding = the(looked(tokens), "Output")
    assert "(6, 1) an input, read as logits of 6 classes" in finding.text


def test_with_an_observable_of_one_s_own_data_are_looked_at_all_the_same(tmp_path):
    report = looked(nn.Identity(), own_observable=True)
    assert report.ok
    assert the(report, "Trusted inputs").level == "ok"


# Accuracy ------------------------------------------------------------------------------------------------------------


def test_an_accuracy_no_better_than_guessing_is_not_ok():
    labels = np.arange(2000) % 10
    predicted = np.where(np.arange(2000) < 212, labels, (labels + 1) % 10)  # 10.6 %
    (finding,), _ = about_labels.accuracy(labels, predicted, np.full(2000, 0.12), weights=False)
    assert finding.level == "warning"
    assert "Guessing among 10 classes is right 10.0% of the time" in finding.text
    assert finding.change.startswith("Pass --weights")
    (finding,), _ = about_labels.accuracy(labels, predicted, np.full(2000, 0.12), weights=True)
    assert "the weights file" in finding.change
    right = np.where(np.arange(2000) < 600, labels, predicted)
    (finding,), _ = about_labels.accuracy(labels, right, np.full(2000, 0.35))
    assert finding.level == "ok"


# Many classes --------------------------------------------------------------------------------------------------------


def test_memory_grows_with_the_classes_seen():
    rng = np.random.default_rng(3)
    labels = rng.choice(30_000, 200, replace=False)
    tracemalloc.start()
    (finding,) = about_labels.order_of_classes(labels, (labels + 7) % 30_000, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "100% of the labels would agree" in finding.text
    assert peak < 20e6, "30,000 x 30,000 numbers would be 7 GB"
    assert about_labels.order_of_classes(labels, labels, None) == []


def test_a_check_of_a_network_with_very_many_classes():
    wide = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 21_841))
    data = open_data((X, np.random.default_rng(4).integers(0, 21_841, 60)))
    tracemalloc.start()
    report = check(load_network(wide), data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert report.figures["n_classes"] == 21_841
