"""Seeded projections: budgets, shapes, exactness of small layers, unbiased inner products."""

from __future__ import annotations

import math

import pytest
import torch

from covary.features.projections import (
    LayerProjection,
    numbers_per_layer,
    orthogonal_rows,
    projection_fingerprint,
    sides,
)


@pytest.mark.parametrize(
    ("layers", "k"), [(1, 256), (16, 256), (17, 240), (20, 204), (63, 65), (64, 64), (65, 64), (500, 64)]
)
def test_numbers_per_layer(layers, k):
    assert numbers_per_layer(layers) == k


def test_orthogonal_rows_are_orthogonal_and_reproducible():
    p = orthogonal_rows(6, 20, 3, "layer", "left")
    torch.testing.assert_close(p @ p.T, torch.eye(6) * 20 / 6, atol=1e-5, rtol=1e-5)
    assert torch.equal(p, orthogonal_rows(6, 20, 3, "layer", "left"))
    for other in (orthogonal_rows(6, 20, 4, "layer", "left"), orthogonal_rows(6, 20, 3, "layer", "right")):
        assert (p - other).abs().max() > 0.1, "seed and name both choose the draw"
    state = torch.get_rng_state()
    orthogonal_rows(6, 20, 3, "layer", "left")
    assert torch.equal(state, torch.get_rng_state()), "the user's own random numbers stay as they are"


def test_the_mean_projection_of_many_seeds_is_the_identity():
    # Entries of P^T P spread by at most about columns / rows; 600 seeds leave 0.1 of a unit, four standard errors.
    rows, columns, seeds = 4, 10, 600
    mean = sum(p.T @ p for p in (orthogonal_rows(rows, columns, s, "x") for s in range(seeds))) / seeds
    assert (mean - torch.eye(columns)).abs().max() < 4 * math.sqrt(columns / rows / seeds)


@pytest.mark.parametrize("shape", [(64, 64), (10, 512), (512, 3), (1, 4096), (2000, 700), (16, 27), (32, 32)])
def test_the_first_stage_is_small_and_takes_small_matrices_whole(shape):
    p, q = sides(*shape)
    assert 1 <= p <= shape[0]
    assert 1 <= q <= shape[1]
    assert p * q <= 4096
    if math.prod(shape) <= 1024:
        assert (p, q) == shape


def test_projection_is_two_sided_then_dense_with_the_bias_as_a_last_column():
    projection = LayerProjection("fc", {"fc.weight": (300, 40), "fc.bias": (300,)}, 100, seed=1)
    (block,) = projection.blocks
    assert block.left is not None
    assert block.right is not None
    assert block.last is not None
    weight, bias = torch.randn(3, 300, 40), torch.randn(3, 300)
    found = projection({"fc.weight": weight, "fc.bias": bias})
    assert found.shape == (3, 100)
    for i in range(3):
        matrix = torch.cat([weight[i], bias[i].unsqueeze(1)], 1)
        expected = block.last @ (block.left @ matrix @ block.right.T).flatten()
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-3)


def test_two_stages_come_closer_to_exact_couplings_than_two_small_sides():
    torch.manual_seed(0)
    d, a = torch.randn(60, 5, 48) + 0.3, torch.randn(60, 5, 200).relu()
    gradient = d.transpose(1, 2) @ a
    exact = gradient.flatten(1) @ gradient.flatten(1).T
    above = torch.ones(60, 60).triu(1).bool()

    def correlation(rows):
        return torch.corrcoef(torch.stack([(rows @ rows.T)[above], exact[above]]))[0, 1]

    two_stages, two_sides, dense = [], [], []
    for seed in range(5):
        two_stages.append(correlation(LayerProjection("fc", {"w": (48, 200)}, 144, seed)({"w": gradient})))
        left, right = orthogonal_rows(12, 48, seed, "left"), orthogonal_rows(12, 200, seed, "right")
        two_sides.append(correlation((left @ gradient @ right.T).flatten(1)))
        dense.append(correlation(gradient.flatten(1) @ orthogonal_rows(144, 48 * 200, seed, "dense").T))
    found, small, best = (torch.stack(values).mean() for values in (two_stages, two_sides, dense))
    assert found > small + 0.3 * (best - small), f"two small sides {small:.3f}, found {found:.3f}, best {best:.3f}"


def test_convolutions_are_matrices_of_output_channels():
    projection = LayerProjection("conv", {"conv.weight": (32, 8, 3, 3)}, 64, seed=1)
    gradient = torch.randn(2, 32, 8, 3, 3)
    (block,) = projection.blocks
    assert (block.rows, block.columns) == (32, 72)
    torch.testing.assert_close(
        projection({"conv.weight": gradient}), projection.blocks[0].project(gradient.reshape(2, 32, 72))
    )


def test_small_layers_are_kept_exactly():
    projection = LayerProjection("norm", {"norm.weight": (20,), "norm.bias": (20,)}, 64, seed=0)
    a, b = torch.randn(4, 20), torch.randn(4, 20)
    kept = projection({"norm.weight": a, "norm.bias": b})
    assert kept.shape == (4, 40)
    torch.testing.assert_close(kept @ kept.T, a @ a.T + b @ b.T, rtol=1e-5, atol=1e-5)


def test_inner_products_are_unbiased_over_seeds():
    torch.manual_seed(0)
    shapes = {"fc.weight": (24, 30), "fc.bias": (24,), "fc.gate": (50, 7)}
    one = {name: torch.randn(1, *shape) for name, shape in shapes.items()}
    two = {name: 0.5 * one[name] + torch.randn(1, *shape) for name, shape in shapes.items()}
    exact = sum(float((one[name] * two[name]).sum()) for name in shapes)
    found = []
    for seed in range(200):
        projection = LayerProjection("fc", shapes, 64, seed)
        found.append(float((projection(one) * projection(two)).sum()))
    found = torch.tensor(found)
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - exact) < 4 * error
    assert error < abs(exact) / 20, "the test would not see a wrong scale"


def test_parameters_of_unlike_shape_share_the_budget():
    shapes = {"a.in_proj_weight": (96, 32), "a.in_proj_bias": (96,), "a.scale": (40, 40)}
    projection = LayerProjection("a", shapes, 128, seed=0)
    numbers = projection({name: torch.randn(2, *shape) for name, shape in shapes.items()})
    assert numbers.shape[1] <= 128
    assert len(projection.blocks) == 2


def test_a_missing_parameter_counts_as_zero():
    projection = LayerProjection("fc", {"fc.weight": (30, 40), "fc.bias": (30,)}, 64, seed=1)
    weight = torch.randn(2, 30, 40)
    torch.testing.assert_close(
        projection({"fc.weight": weight}), projection({"fc.weight": weight, "fc.bias": torch.zeros(2, 30)})
    )


def test_fingerprint_depends_on_the_seed_alone():
    assert projection_fingerprint(3) == projection_fingerprint(3)
    assert projection_fingerprint(3) != projection_fingerprint(4)
