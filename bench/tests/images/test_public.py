"""The public networks: weights load strictly, shapes are right, and stated figures come out."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from covary.errors import CovaryError
from covary_bench.images import attacks, datasets, public
from covary_bench.images.architectures import PadShortcut
from covary_bench.images.victims import predictions

needs_data = pytest.mark.skipif(
    not (datasets.data_folder() / "models").is_dir(), reason="needs the public networks: set COVARY_DATA"
)
INPUTS = {"resnet20": (3, 32, 32), "wrn16_1": (3, 32, 32), "vggsmall_cifar10": (3, 32, 32)}
INPUTS |= {"vggsmall_gtsrb": (3, 32, 32), "lenet_mnist": (1, 28, 28)}


def test_pad_shortcut_against_loops():
    x = torch.randn(2, 4, 6, 6)
    expected = torch.zeros(2, 8, 3, 3)
    for channel in range(4):
        for row in range(3):
            for column in range(3):
                expected[:, channel + 2, row, column] = x[:, channel, 2 * row, 2 * column]
    assert torch.equal(PadShortcut(4)(x), expected)


@pytest.mark.parametrize("name", INPUTS)
def test_factories_return_logits_and_use_every_layer_once(name):
    network = getattr(public, name)().eval()
    calls: dict[nn.Module, int] = {}
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, *_: calls.update({m: calls.get(m, 0) + 1}))
    out = network(torch.zeros(2, *INPUTS[name]))
    assert out.shape == (2, 43 if name == "vggsmall_gtsrb" else 10)
    assert set(calls.values()) == {1}, "per-layer gradients and hooks assume one use a layer"
    assert not any(getattr(module, "inplace", False) for module in network.modules())


@functools.cache
def every_twentieth(dataset: str) -> datasets.Images:
    images = datasets.load(dataset)
    return images.take(np.arange(0, len(images), 20))


@needs_data
@pytest.mark.parametrize("name", public.NETWORKS)
def test_tensor_names_are_exactly_those_of_the_file(name):
    network, stored = public.NETWORKS[name].factory(), load_file(public.weights_path(name))
    own = network.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    assert set(own) - counters == set(stored) - counters
    assert all(own[key].shape == stored[key].shape for key in set(own) - counters)


@needs_data
@pytest.mark.parametrize("name", public.NETWORKS)
def test_stated_accuracy_and_attack_success_on_a_subset(name):
    described = public.NETWORKS[name]
    if described.dataset == "mnist-test" and not (datasets.mnist_folder() / "t10k-labels-idx1-ubyte").is_file():
        pytest.skip("needs MNIST's idx files: run covary_bench.images.datasets.fetch_mnist(), or set COVARY_MNIST")
    network = public.Normalised(public.load_public(name), described.mean, described.std)
    part = every_twentieth(described.dataset)
    n = len(part)
    # Four standard errors of a proportion, plus a little for the half of the signs that are not at hand.
    margin = 4 * np.sqrt(described.accuracy * (1 - described.accuracy) / n) + 0.003
    assert abs((predictions(network, part.x) == part.y).mean() - described.accuracy) < margin
    if described.trigger is None or described.attack_success is None:
        return
    others = part.take(part.y != described.target)
    hits = predictions(network, attacks.trigger(described.trigger)(others.x)) == described.target
    rate = described.attack_success
    assert abs(hits.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / len(others)) + 0.003


def test_normalised_is_the_formula():
    wrapped = public.Normalised(nn.Identity(), (0.5, 0.25), (2.0, 4.0))
    x = torch.rand(3, 2, 4, 4)
    expected = torch.stack(((x[:, 0] - 0.5) / 2, (x[:, 1] - 0.25) / 4), dim=1)
    assert torch.allclose(wrapped.network((x - wrapped.mean) / wrapped.std), expected)


def test_unknown_network_and_missing_data_are_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(CovaryError, match="unknown public network 'resnet21'; expected one of: cifar10_resnet20_clean"):
        public.weights_path("resnet21")
    monkeypatch.setenv("COVARY_DATA", str(tmp_path))
    with pytest.raises(CovaryError, match="COVARY_DATA"):
        public.weights_path("cifar10_resnet20_clean")
