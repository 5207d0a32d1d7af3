"""Survival under amplification against a deep copy with multiplied weights, for every kind of normalisation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from covary.features.observables import margin
from covary.features.survival import Survival, amplifiable_layers, even_depths


class Scaled(nn.Module):
    """RMS normalisation as other libraries write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean(-1, keepdim=True).add(1e-6).sqrt() * self.weight


class TinyRMSNorm(Scaled):
    """Known by the end of its name."""


def network(norm: str) -> nn.Module:
    torch.manual_seed(0)
    makers = {
        "batch": lambda: nn.BatchNorm1d(12), "layer": lambda: nn.LayerNorm(12), "group": lambda: nn.GroupNorm(3, 12),
        "rms": lambda: TinyRMSNorm(12), "torch rms": lambda: nn.RMSNorm(12), "none": nn.Identity,
    }  # fmt: skip
    layers: list[nn.Module] = [nn.Linear(6, 12)]
    for _ in range(4):
        layers += [makers[norm](), nn.Tanh(), nn.Linear(12, 12)]
    full = nn.Sequential(*layers, nn.Linear(12, 4)).eval()
    with torch.no_grad():
        for parameter in full.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return full


def amplified(module: nn.Module, last: int, factor: float) -> nn.Module:
    """The obvious way: a whole copy, its last layers multiplied in place."""
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for name in amplifiable_layers(twin)[-last:]:
            for parameter in twin.get_submodule(name).parameters(recurse=False):
                parameter.mul_(factor)
    return twin


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "rms", "torch rms", "none"])
def test_margins_are_those_of_a_copy_with_multiplied_weights(norm):
    module, x = network(norm), torch.randn(40, 6)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    survival = Survival(module, lambda out: out).choose([x[:20], x[20:]])
    if not survival.depths:
        survival.depths = [1, 2]
    predicted = module(x).argmax(-1)
    expected = [margin(amplified(module, depth, survival.factor)(x), predicted) for depth in survival.depths]
    torch.testing.assert_close(survival(x, predicted), torch.stack(expected, -1).detach())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_normalisations_are_amplified_where_there_are_any():
    assert amplifiable_layers(network("rms")) == ["1", "4", "7", "10"]
    assert amplifiable_layers(network("none")) == ["0", "3", "6", "9", "12"]


def test_a_normalisation_without_a_scale_is_none():
    assert amplifiable_layers(
        nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3, elementwise_affine=False), nn.Linear(3, 2))
    ) == ["0"]


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 6, 19, 200])
def test_depths_are_even_and_end_with_all_layers(layers):
    depths = even_depths(layers)
    assert depths == sorted(set(depths))
    assert len(depths) == min(6, layers)
    assert not depths or (depths[0] >= 1 and depths[-1] == layers)


def test_what_was_chosen_is_restored():
    module, x = network("layer"), torch.randn(30, 6)
    first = Survival(module, lambda out: out).choose([x])
    again = Survival(module, lambda out: out, first.state)
    assert again.state == first.state
    if first.depths:
        torch.testing.assert_close(again(x, module(x).argmax(-1)), first(x, module(x).argmax(-1)))


def test_a_network_that_only_scales_its_logits_has_no_survival():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).eval()
    assert Survival(module, lambda out: out).choose([torch.randn(50, 5)]).depths == []


def test_a_shared_weight_is_amplified_in_all_its_places():
    torch.manual_seed(0)
    norm = nn.LayerNorm(6)
    module = nn.Sequential(nn.Linear(6, 6), norm, nn.Tanh(), norm, nn.Linear(6, 3)).eval()
    survival = Survival(module, lambda out: out, {"factor": 3.0, "depths": [1], "changed": 1.0})
    x = torch.randn(7, 6)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin[1].weight.mul_(3)
        twin[1].bias.mul_(3)
    torch.testing.assert_close(survival.logits(x, 1), twin(x).detach())
