"""Pooled activations: what is watched, and means over positions by their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from covary.features.activations import compress, pool, pooled_activations, watched_layers
from covary.features.gradient import GradientExtractor
from covary.scoring.rows import Batch, Rows


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.same(self.same(x))


def test_convolutions_norms_linear_and_attention_are_watched():
    module = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 3),
            "bn": nn.BatchNorm2d(4),
            "relu": nn.ReLU(),
            "group": nn.GroupNorm(2, 4),
            "flat": nn.Flatten(),
            "layer": nn.LayerNorm(4),
            "rms": nn.RMSNorm(4),
            "attention": nn.MultiheadAttention(4, 2),
            "fc": nn.Linear(4, 2),
            "drop": nn.Dropout(),
        }
    )
    watched = set(watched_layers(module))
    # An attention's output projection is a linear layer of its own, though attention never calls it as one.
    assert watched - {"attention.out_proj"} == {"conv", "bn", "group", "layer", "rms", "attention", "fc"}


@pytest.mark.parametrize(
    ("layer", "shape", "channel"),
    [
        (nn.Conv2d(1, 4, 1), (3, 4, 5, 6), 1),
        (nn.Conv1d(1, 4, 1), (3, 4, 5), 1),
        (nn.BatchNorm2d(4), (3, 4, 5, 6), 1),
        (nn.GroupNorm(2, 4), (3, 4, 5, 6), 1),
        (nn.Linear(1, 4), (3, 5, 4), 2),
        (nn.LayerNorm(4), (3, 5, 6, 4), 3),
        (nn.Linear(1, 4), (3, 4), 1),
    ],
)
def test_pooling_is_the_mean_over_all_positions(layer, shape, channel):
    output = torch.randn(*shape)
    found = pool(layer, output)
    moved = output.movedim(channel, 1).reshape(shape[0], shape[channel], -1)
    for i in range(shape[0]):
        for c in range(shape[channel]):
            assert found[i, c].item() == pytest.approx(moved[i, c].mean().item(), abs=1e-6)


def test_attention_gives_its_first_output():
    layer = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    x = torch.randn(2, 5, 4)
    output = layer(x, x, x)
    torch.testing.assert_close(pool(layer, output), output[0].mean(1))


def test_a_layer_called_twice_gives_the_mean_of_its_calls():
    module, x = Twice(), torch.randn(2, 3)
    with pooled_activations(module) as found:
        module(x)
    once = module.same(x)
    torch.testing.assert_close(found["same"], (once + module.same(once)) / 2)


def test_an_activation_in_place_does_not_reach_what_was_saved():
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True))
    x = torch.randn(4, 3)
    with pooled_activations(module) as found:
        module(x)
    torch.testing.assert_close(found["0"], module[0](x).detach())
    assert (found["0"] < 0).any()


def test_hooks_are_gone_afterwards_even_when_the_network_fails():
    module = nn.Sequential(nn.Linear(3, 5))
    with pytest.raises(RuntimeError, match="shapes"), pooled_activations(module):
        module(torch.randn(2, 4))
    assert not module[0]._forward_hooks


def test_compression_keeps_narrow_layers_and_projects_wide_ones():
    rows = torch.randn(3, 5, dtype=torch.float64)
    assert torch.equal(compress(rows, None), rows.float())
    projection = torch.randn(2, 5)
    torch.testing.assert_close(compress(rows, projection), rows.float() @ projection.T)


def test_last_features_are_what_the_last_linear_layer_takes():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    x = torch.randn(5, 1, 6, 6)
    extractor = GradientExtractor(network.eval(), lambda out: out)
    rows = extractor.rows(Batch([str(i) for i in range(5)], x))
    np.testing.assert_allclose(rows.features, network[:-1](x).detach().numpy(), rtol=1e-5)
    assert list(rows.latent) == ["0", "4"]
    half = Rows.concatenate([rows.take([0, 1]), rows.take([2, 3, 4])])
    np.testing.assert_array_equal(half.features, rows.features)


def test_without_a_linear_layer_the_last_convolution_tells():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(5, 1, 6, 6)
    for engine in ("hooks", "exact"):
        rows = GradientExtractor(network.eval(), lambda out: out, engine=engine).rows(Batch(list("abcde"), x))
        np.testing.assert_allclose(rows.features, network[:2](x).mean((2, 3)).detach().numpy(), rtol=1e-5)
