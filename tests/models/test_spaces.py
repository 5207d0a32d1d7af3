"""Parameter spaces: which weights may move, by layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from covary.errors import CovaryError
from covary.models.spaces import ROOT, SPACES, layer_of, select_parameters


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4, bias=False))
        self.bodyguard = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) * self.scale)


def test_everything_trainable_weight_and_bias_together():
    assert select_parameters(Small(), "all") == {
        ROOT: ["scale"],
        "body.0": ["body.0.weight", "body.0.bias"],
        "body.2": ["body.2.weight"],
        "bodyguard": ["bodyguard.weight", "bodyguard.bias"],
        "attention": ["attention.in_proj_weight", "attention.in_proj_bias"],
        "attention.out_proj": ["attention.out_proj.weight", "attention.out_proj.bias"],
        "head": ["head.weight", "head.bias"],
    }
    assert select_parameters(Small()) == select_parameters(Small(), "all")


def test_frozen_weights_do_not_move():
    module = Small()
    module.head.requires_grad_(False)
    module.body[0].bias.requires_grad_(False)
    found = select_parameters(module)
    assert "head" not in found
    assert found["body.0"] == ["body.0.weight"]
    # The last layer that may move, not the last one there is.
    assert list(select_parameters(module, "last-layer")) == ["attention.out_proj"]


def test_last_layer():
    assert select_parameters(Small(), "last-layer") == {"head": ["head.weight", "head.bias"]}


def test_modules_by_whole_names():
    found = select_parameters(Small(), "modules:body, attention.out_proj")
    assert list(found) == ["body.0", "body.2", "attention.out_proj"], "`body` must not catch `bodyguard`"


def test_pattern_over_parameter_names():
    assert select_parameters(Small(), "pattern:*.bias") == {
        "body.0": ["body.0.bias"],
        "bodyguard": ["bodyguard.bias"],
        "attention.out_proj": ["attention.out_proj.bias"],
        "head": ["head.bias"],
    }


def test_shared_weights_appear_once_under_their_first_name():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    assert select_parameters(module) == {"0": ["0.weight", "0.bias"], "1": ["1.bias"]}


def test_layer_of():
    assert [layer_of(name) for name in ("a.b.weight", "a.bias", "scale")] == ["a.b", "a", ROOT]


@pytest.mark.parametrize("space", ["some", "modules", "pattern:", "all:head", "", "last-layer:2"])
def test_unknown_spaces_are_refused(space):
    if space in ("all:head", "last-layer:2"):
        kind = space.partition(":")[0]
        assert kind in SPACES
    with pytest.raises(CovaryError, match="unknown parameter space"):
        select_parameters(Small(), space)


def test_spaces_that_select_nothing_name_what_there_is():
    with pytest.raises(CovaryError, match=r"selects nothing.*body\.0"):
        select_parameters(Small(), "modules:nowhere")
    with pytest.raises(CovaryError, match="no parameters"):
        select_parameters(nn.ReLU())


def test_a_network_frozen_for_serving_moves_as_a_whole():
    frozen = Small().requires_grad_(False)
    assert select_parameters(frozen) == select_parameters(Small())
