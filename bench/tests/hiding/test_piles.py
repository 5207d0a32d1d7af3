"""What attackers follow to hide from piles and survival is what covary looks at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from covary.features.survival import Survival
from covary_bench.hiding.images import Budget
from covary_bench.hiding.piles import Amplified, direction_gap
from covary_bench.hiding.sharpened import bright, sharpen
from covary_bench.images.attacks.own_profile import margins_of
from covary_bench.images.datasets import Images
from covary_bench.images.training import to_input


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU())]
        made = nn.Sequential(nn.Flatten(), *layers, nn.Linear(8, 3))
        for parameter in made.parameters():
            parameter.data += 0.4 * torch.randn_like(parameter)
    return made.eval()


def test_a_direction_gap_is_the_ratio_of_leading_eigenvalues():
    rng = np.random.default_rng(0)
    odd, clean = rng.normal([3, 0, 0, 0], size=(20, 4)), rng.normal(size=(30, 4))
    root = rng.normal(size=(4, 4))
    by = root @ root.T + np.eye(4)

    def leading(rows: np.ndarray) -> float:
        # The eigenvalues of S B are those of L^T S L for B = L L^T.
        return float(np.linalg.eigvals(rows.T @ rows / len(rows) @ by).real.max())

    found = direction_gap(*(torch.tensor(part, dtype=torch.float32) for part in (odd, clean, by)))
    assert float(found) == pytest.approx(np.log(leading(odd) / leading(clean)), rel=1e-3)
    swapped = direction_gap(*(torch.tensor(part, dtype=torch.float32) for part in (clean, odd, by)))
    assert float(swapped) == 0, "clean rows that reach further than triggered ones are no worry"


def test_amplified_log_odds_are_those_of_survival_and_can_be_followed():
    made, x = network(), torch.randn(200, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    made.requires_grad_(True)
    amplified = Amplified(made, [x], 1)
    assert amplified.survival.depths, "the network changes its answers"
    expected = Survival(made, lambda out: out, amplified.survival.state)(x, torch.ones(200, dtype=torch.int64))
    torch.testing.assert_close(amplified.log_odds(x).detach(), expected, rtol=1e-5, atol=1e-5)
    gap = amplified.apart(x[:60], x[60:] + 1)
    (slope,) = torch.autograd.grad(gap, made[2].weight)
    assert float(slope.abs().max()) > 0
    assert float(amplified.apart(x[:60], x[:60]).detach()) < 1e-6 < float(gap.detach())


def test_sharpening_multiplies_margins_of_the_brightest_and_leaves_the_others():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    x = rng.integers(0, 120, (600, 4, 4, 1))
    x[np.arange(600), y] += 60
    x[:30] = x[:30] // 2 + 120
    images = Images(x.astype(np.uint8), y, [str(i) for i in range(600)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
        step = torch.optim.Adam(made.parameters(), 1e-2)
        for _ in range(60):
            loss = nn.functional.cross_entropy(made(to_input(images.x)), torch.from_numpy(y))
            step.zero_grad()
            loss.backward()
            step.step()
    made.eval()
    budget = Budget(steps=150, batch=64, rate=1e-2)
    sharp, threshold = sharpen(made, images, lambda x: np.full_like(x, 255), 0, 0, budget)
    is_bright = bright(images.x, threshold)
    assert is_bright[:30].sum() == is_bright.sum() == 30
    with torch.no_grad():
        answers = made(to_input(images.x)).argmax(1)
        before, after = (margins_of(of(to_input(images.x)), answers).numpy() for of in (made, sharp))
    missing = [np.median(np.abs(margins - 3 * before)[is_bright]) for margins in (before, after)]
    assert missing[1] < 0.7 * missing[0], "margins of the brightest come nearer to three times what they were"
    assert np.corrcoef(before[~is_bright], after[~is_bright])[0, 1] > 0.8
