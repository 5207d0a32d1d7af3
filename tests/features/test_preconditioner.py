"""Metrics: against the explicit Kronecker product, in both engines, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from covary.errors import CovaryError
from covary.features.gradient import GradientExtractor
from covary.features.preconditioner import METRICS, GradientMoments, inverse_root, under_metric
from covary.features.projections import LayerProjection
from covary.scoring.rows import Batch

SHAPES = {"weight": (6, 4), "bias": (6,)}


def some_gradients(n: int = 12) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.2, 3, 6).view(-1, 1)
    return {
        "weight": torch.randn(n, 6, 4, generator=generator) * scale,
        "bias": torch.randn(n, 6, generator=generator) * scale[:, 0],
    }


def matrices(gradients: dict[str, Tensor]) -> np.ndarray:
    return torch.cat([gradients["weight"], gradients["bias"].unsqueeze(-1)], -1).double().numpy()


@pytest.mark.parametrize("kind", ["kronecker", "diagonal"])
def test_rows_couple_as_the_explicit_kronecker_product_does(kind: str) -> None:
    gradients, damping = some_gradients(), 0.2
    projections = {"layer": LayerProjection("layer", SHAPES, k=256, seed=0)}
    moments = GradientMoments(projections, kind)
    for start in range(0, 12, 5):
        moments.add({name: g[start : start + 5] for name, g in gradients.items()})
    rows = under_metric(projections, moments.metric(damping))["layer"](gradients).double().numpy()

    g = matrices(gradients)
    left, right = np.einsum("nab,ncb->ac", g, g), np.einsum("nab,nac->bc", g, g)
    if kind == "diagonal":
        left, right = np.diag(np.diag(left)), np.diag(np.diag(right))
    left, right = (m / (np.trace(m) / len(m)) + damping * np.eye(len(m)) for m in (left, right))
    sigma = np.linalg.inv(np.kron(left, right))
    flat = g.reshape(12, -1)
    np.testing.assert_allclose(rows @ rows.T, flat @ sigma @ flat.T, rtol=2e-5, atol=1e-5)


def test_root_of_a_vector_is_that_of_its_diagonal_matrix() -> None:
    moment = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    torch.testing.assert_close(torch.diag(inverse_root(moment, 0.3)), inverse_root(torch.diag(moment), 0.3))


def test_long_sides_keep_their_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("covary.features.preconditioner.LONGEST_SIDE", 5)
    moments = GradientMoments({"layer": LayerProjection("layer", SHAPES, k=256, seed=0)}, "kronecker")
    moments.add(some_gradients())
    sides = moments.metric()["layer"][0]
    assert sides.left.shape == (6,)
    assert sides.right.shape == (5, 5)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 20, 3, groups=2), nn.Flatten(), nn.Tanh(),
        nn.Linear(20 * 16, 40), nn.LayerNorm(40), nn.ReLU(), nn.Linear(40, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("kind", ["kronecker", "diagonal"])
def test_both_engines_agree_under_a_metric(kind: str) -> None:
    module, x = network(), torch.randn(9, 3, 8, 8)
    batch = Batch([str(i) for i in range(9)], x)
    plain = GradientExtractor(module, lambda out: out, engine="exact")
    metric = plain.moments([Batch(batch.ids[:4], x[:4]), Batch(batch.ids[4:], x[4:])], kind).metric()
    exact, hooks = (GradientExtractor(module, lambda out: out, engine=e, metric=metric) for e in ("exact", "hooks"))
    expected, got = exact.rows(batch), hooks.rows(batch)
    assert hooks.notes == []
    for layer, rows in expected.functional.items():
        np.testing.assert_allclose(got.functional[layer], rows, atol=2e-4 * np.abs(rows).max(), err_msg=layer)
    np.testing.assert_allclose(got.functional_norms, expected.functional_norms, rtol=2e-4)
    assert set(exact.norm_kinds.values()) == set(hooks.norm_kinds.values()) == {"projected"}
    first = next(iter(expected.functional))
    assert not np.allclose(expected.functional[first], plain.rows(batch).functional[first], rtol=0.01)


def test_wrong_requests_are_refused() -> None:
    projections = {"layer": LayerProjection("layer", SHAPES, k=256, seed=0)}
    with pytest.raises(CovaryError, match="metric 'fisher'"):
        GradientMoments(projections, "fisher")
    for kind in METRICS:
        with pytest.raises(CovaryError, match="from 0 gradients"):
            GradientMoments(projections, kind).metric()
