"""Controls of pile evidence by the slow obvious formula, and survival alone on a network that can be amplified."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from covary.errors import CovaryError
from covary.features.survival import Survival
from covary.scoring.rows import Rows
from covary_bench.baselines.images.pile import _along_the_pile, pile_on_features
from covary_bench.baselines.images.survival import survival_alone
from covary_bench.baselines.material import Material, Probe


def rows(n: int, seed: int = 0) -> Rows:
    ids = [f"{seed} {i}" for i in range(n)]
    predicted = np.random.default_rng(seed).integers(0, 2, n)
    return Rows(ids, predicted, np.zeros(n), {}, np.zeros((n, 0)))


def test_a_direction_of_the_pile_is_found_however_small_the_push_of_each():
    rng = np.random.default_rng(0)
    fit, clean, odd = (rng.standard_normal((n, 8)) for n in (300, 300, 100))
    odd[:, 0] += 2.5
    found = _along_the_pile(fit, np.concatenate([clean, odd]))
    order = found.argsort().argsort()
    assert (order[300:].mean() - order[:300].mean()) / 400 > 0.3


def test_last_features_are_those_of_fit_samples_and_pile():
    reference, fit, queries = rows(40), rows(60, 1), rows(80, 2)
    rng = np.random.default_rng(3)
    features, query_rows = rng.standard_normal((100, 5)), rng.standard_normal((80, 5))
    query_rows[60:, 1] += 3

    def score(known):
        return pile_on_features(
            Material(Rows.concatenate([reference, fit]), queries, known, query_rows, reference, fit)
        )  # fmt: skip

    found = score(features)
    assert found[60:].mean() > found[:60].mean()
    other = features.copy()
    other[:40] = 99.0  # reference samples teach no numbers
    np.testing.assert_array_equal(score(other), found)


def test_survival_alone_is_the_mean_of_log_odds_and_says_where_it_is_blind():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()
    # Two classes near each other, one by its bias: amplified features outweigh that.
    network[2].bias.data[:] = 1.0
    network[4].bias.data[0], network[4].weight.data[1] = 2.0, network[4].weight.data[1] + 0.1
    trusted, queries = torch.rand(40, 3, 2, 2), torch.rand(20, 3, 2, 2)

    def material(module):
        probe = Probe(module, trusted, queries, np.zeros(40, np.int64))
        logits = probe.logits(queries)
        query_rows = rows(20)
        object.__setattr__(query_rows, "predicted", logits.argmax(1))
        return Material(rows(40), query_rows, np.zeros((40, 1)), np.zeros((20, 1)), rows(30), rows(10), probe)

    blind = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(CovaryError, match="no amplified layers"):
        survival_alone(material(blind.eval()))
    found = survival_alone(material(network))
    chosen = Survival(network, lambda out: out).choose([trusted[:30]])
    predicted = network(queries).argmax(1)
    by_hand = []
    for depth in chosen.depths:
        logits = chosen.logits(queries, depth)
        own = logits.gather(1, predicted[:, None])[:, 0]
        others = logits.scatter(1, predicted[:, None], -torch.inf).logsumexp(1)
        by_hand.append((own - others).detach().numpy())
    np.testing.assert_allclose(found, np.mean(by_hand, axis=0), rtol=1e-4)
