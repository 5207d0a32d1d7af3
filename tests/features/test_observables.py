"""Observables: the value and the gradient direction survive saturation in float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from covary.errors import CovaryError
from covary.features.observables import OBSERVABLES, energy, margin, nll, observable_named
from covary.models.network import as_logits


def slow_margin(z: list[float], y: int) -> float:
    """log p_y - log(1 - p_y), in double precision with the largest other logit taken out."""
    others = [value for k, value in enumerate(z) if k != y]
    top = max(others)
    return z[y] - top - math.log(sum(math.exp(value - top) for value in others))


def slow_nll(z: list[float], y: int) -> float:
    m = slow_margin(z, y)
    return math.log1p(math.exp(-m)) if m > 0 else -m + math.log1p(math.exp(m))


def test_values_are_log_odds_and_negative_log_likelihood():
    z = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)) * 3
    y = torch.arange(20) % 5
    for i in range(20):
        assert margin(z, y)[i].item() == pytest.approx(slow_margin(z[i].tolist(), int(y[i])), rel=1e-5, abs=1e-5)
        assert nll(z, y)[i].item() == pytest.approx(slow_nll(z[i].tolist(), int(y[i])), rel=1e-5, abs=1e-6)
        p = torch.softmax(z[i].double(), 0)[y[i]]
        assert margin(z, y)[i].item() == pytest.approx(float(torch.log(p) - torch.log1p(-p)), rel=1e-4, abs=1e-5)
        assert nll(z, y)[i].item() == pytest.approx(-float(torch.log(p)), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", OBSERVABLES)
@pytest.mark.parametrize("top", [60.0, -60.0])
@pytest.mark.parametrize("rest", [(0.0,), (0.0, 1.0, -2.0)])
def test_saturated_float32_values_and_gradients(name, top, rest):
    z = torch.tensor([[top, *rest]], requires_grad=True)
    y = torch.tensor([0])
    value = OBSERVABLES[name](z, y)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    slow = {"margin": slow_margin, "nll": slow_nll}[name]
    assert value.dtype == torch.float32
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    expected = slow([top, *rest], 0)
    assert value.item() == pytest.approx(expected, rel=1e-5), "right far past saturation, not zero and not rounded"
    assert value.item() != 0
    # The closed form: d margin = (1, -softmax of the others); d nll = -(1 - p_y) d margin.
    others = np.exp(np.array(rest) - max(rest))
    direction = np.concatenate([[1.0], -others / others.sum()])
    size = 1.0 if name == "margin" else -1 / (1 + math.exp(slow_margin([top, *rest], 0)))
    np.testing.assert_allclose(gradient[0].numpy(), size * direction, rtol=1e-4)


@pytest.mark.parametrize("z", [-60.0, -0.3, 0.4, 60.0])
def test_single_logit_is_a_pair_with_zero(z):
    raw = torch.tensor([z], requires_grad=True)
    logits = as_logits(raw)
    assert logits.tolist() == [[0.0, pytest.approx(z)]]
    predicted = logits.argmax(-1)
    assert predicted.item() == int(z > 0)
    value = margin(logits, predicted)
    assert value.item() == pytest.approx(abs(z))
    assert torch.autograd.grad(value.sum(), raw)[0].item() == pytest.approx(math.copysign(1, z))
    assert nll(as_logits(raw), predicted).item() == pytest.approx(math.log1p(math.exp(-abs(z))), rel=1e-5)


def test_more_certain_is_a_larger_margin_and_a_smaller_nll():
    z = torch.stack([torch.linspace(-80, 80, 33), torch.zeros(33), torch.ones(33)], 1)
    y = torch.zeros(33, dtype=torch.long)
    assert (margin(z, y).diff() > 0).all()
    assert (nll(z, y).diff() < 0).all(), "no flat part, however saturated"


def test_energy_is_minus_logsumexp():
    z = torch.tensor([[1.0, 2.0, 3.0], [100.0, 0.0, 0.0]])
    assert energy(z)[0].item() == pytest.approx(-math.log(math.e + math.e**2 + math.e**3), rel=1e-6)
    assert energy(z)[1].item() == pytest.approx(-100.0)


def test_unknown_observable_lists_the_valid_ones():
    assert observable_named("margin") is margin
    with pytest.raises(CovaryError, match="margin, nll"):
        observable_named("loss")
