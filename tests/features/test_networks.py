"""Rows of networks drawn at random are those of each sample alone; `COVARY_NETWORKS=500` draws more of them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

from covary.scoring.rows import Rows
from networks import alone, extractor, far, networks, rows_of

NETWORKS = int(os.environ.get("COVARY_NETWORKS", "40"))


def same(found: Rows, wanted: Rows, limit: float = 1e-4) -> None:
    """Everything a verdict is made of, in two sets of rows of the same samples."""
    longest = max(np.abs(rows).max() for rows in wanted.functional.values())
    for layer, rows in wanted.functional.items():
        assert far(found.functional[layer], rows, 1e-3 * longest) < limit, f"gradient of {layer}"
    assert found.latent.keys() == wanted.latent.keys()
    for layer, rows in wanted.latent.items():
        assert far(found.latent[layer], rows, 1e-3) < limit, f"activation of {layer}"
    assert far(found.functional_norms, wanted.functional_norms) < limit
    if wanted.features is not None:
        assert far(found.features, wanted.features, 1e-3) < limit
    assert (found.predicted == wanted.predicted).all()
    assert far(found.observable, wanted.observable, 1e-2) < limit


def check(network: torch.nn.Module, x: Tensor, choose=lambda out: out) -> list[str]:
    """Rows of 64, 7 and 1 sample at a time agree, with each other and with autograd; neighbours do not move."""
    some = [0, 4, 6]
    features = extractor(network, choose)
    whole = rows_of(features, x)
    gradients, means = alone(features, x[some])
    longest = max(np.abs(rows).max() for rows in gradients.values())
    for layer, rows in gradients.items():
        assert far(whole.functional[layer][some], rows, 1e-3 * longest) < 1e-4, f"gradient of {layer}"
    for layer, rows in means.items():
        assert far(whole.latent[layer][some], rows, 1e-3) < 1e-4, f"activation of {layer}"
    seven = rows_of(features, x[:7])
    same(whole.take(np.arange(7)), seven)
    for i in some:
        same(rows_of(features, x[i : i + 1]), seven.take(np.array([i])))
    other = x[:7].clone()
    other[1] = x[9]
    still = np.array([0, 2, 3, 4, 5, 6])
    same(rows_of(features, other).take(still), seven.take(still))
    # Another extractor that meets a single sample first, as one that was loaded may.
    fresh = extractor(network, choose)
    same(rows_of(fresh, x[4:5]), seven.take(np.array([4])))
    same(rows_of(fresh, x[:7]), seven)
    return features.notes


@pytest.mark.timeout(300 + 20 * NETWORKS)
@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=NETWORKS, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None,
    phases=[Phase.generate], report_multiple_bugs=False,
)  # fmt: skip
@given(networks())
def test_rows_are_those_of_the_sample_alone(drawn) -> None:
    network, shape = drawn
    torch.manual_seed(1)
    check(network, torch.randn(64, *shape))
