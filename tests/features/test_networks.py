"""Rows of networks drawn at random are those of each sample alone; `COVARY_NETWORKS=500` draws more of them."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from networks import check, networks

NETWORKS = int(os.environ.get("COVARY_NETWORKS", "40"))


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
