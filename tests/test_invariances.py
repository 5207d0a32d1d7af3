"""Batch size and order change nothing beyond rounding, left of the waist and right of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from core_cases import synthetic
from covary.features.gradient import GradientExtractor
from covary.models.network import as_logits
from covary.scoring.judge import Judge
from covary.scoring.rows import Batch, Rows
from covary.scoring.scores import SCORES

N = 11
TOLERANCE = 1e-5
ENGINES = ["exact", "hooks"]


def network() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 12),
        nn.LayerNorm(12),
        nn.Linear(12, 4),
    )
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(32, 3, 9, 9) * 2 + 0.5)
    return module.eval()


def extractor(engine: str) -> GradientExtractor:
    return GradientExtractor(network(), as_logits, engine=engine, seed=3)


def inputs() -> torch.Tensor:
    return torch.randn(N, 3, 9, 9, generator=torch.Generator().manual_seed(5))


def batches(order: np.ndarray, size: int) -> list[Batch]:
    x = inputs()
    return [
        Batch([f"image-{i}" for i in order[start : start + size]], x[order[start : start + size]])
        for start in range(0, len(order), size)
    ]


def rows_of(one: GradientExtractor, several: list[Batch]) -> Rows:
    return Rows.concatenate([one.rows(batch) for batch in several])


def assert_same_rows(found: Rows, expected: Rows) -> None:
    assert list(found.ids) == list(expected.ids)
    np.testing.assert_array_equal(found.predicted, expected.predicted)

    def close(a: np.ndarray, b: np.ndarray, what: str) -> None:
        # Relative to the largest number of the kind: single entries of a gradient may be near zero.
        assert np.abs(a - b).max() <= TOLERANCE * max(np.abs(b).max(), 1e-6), what

    close(found.observable, expected.observable, "observable")
    close(found.functional_norms, expected.functional_norms, "norms")
    for layer in expected.functional:
        close(found.functional[layer], expected.functional[layer], f"gradient of {layer}")
    for layer in expected.latent:
        close(found.latent[layer], expected.latent[layer], f"activation of {layer}")
    for name in expected.confidence:
        close(found.confidence[name], expected.confidence[name], name)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1, 4])
def test_features_do_not_depend_on_batch_size(engine, size):
    order = np.arange(N)
    expected = rows_of(extractor(engine), batches(order, N))
    assert_same_rows(rows_of(extractor(engine), batches(order, size)), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_features_do_not_depend_on_order_or_company(engine):
    one = extractor(engine)
    expected = rows_of(one, batches(np.arange(N), N))
    order = np.random.default_rng(0).permutation(N)
    assert_same_rows(rows_of(one, batches(order, 4)), expected.take(order))
    some = np.array([7, 2])
    assert_same_rows(rows_of(one, batches(some, 2)), expected.take(some))


@pytest.mark.parametrize("engine", ENGINES)
def test_features_are_the_same_run_after_run(engine):
    order = np.arange(N)
    torch.manual_seed(1)
    first = rows_of(extractor(engine), batches(order, 5))
    torch.manual_seed(2)
    torch.randn(100)
    assert_same_rows(rows_of(extractor(engine), batches(order, 5)), first)


@pytest.mark.parametrize("engine", ENGINES)
def test_scoring_leaves_the_network_as_it_was(engine):
    one = extractor(engine)
    before = {name: value.clone() for name, value in one.module.state_dict().items()}
    x = inputs()
    logits = one.module(x)
    one.rows(Batch([str(i) for i in range(N)], x))
    for name, value in one.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(one.module(x), logits)
    assert torch.equal(x, inputs()), "the inputs too"
    assert all(parameter.grad is None for parameter in one.module.parameters())


class SequenceFirst(nn.Module):
    """Attention with torch's default layout: time first, then samples."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = x.transpose(0, 1)
        return self.head(self.attention(t, t, t, need_weights=False)[0].mean(0))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("engine", ENGINES)
def test_layers_whose_samples_come_second_are_pooled_per_sample(engine):
    torch.manual_seed(0)
    one = GradientExtractor(SequenceFirst().eval(), as_logits, engine=engine)
    x = torch.randn(4, 5, 8)
    together, alone = one.rows(Batch(list("abcd"), x)), one.rows(Batch(["c"], x[2:3]))
    for layer, rows in together.latent.items():
        assert len(rows) == 4, layer
        np.testing.assert_allclose(alone.latent[layer][0], rows[2], atol=TOLERANCE, err_msg=layer)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("n", [90, 400])
def test_verdicts_do_not_depend_on_batch_size_or_order(score, n):
    trusted, labels = synthetic(n, 1, wrong=0.05)
    queries, _ = synthetic(37, 2, wrong=0.1)
    judge = Judge(score, fpr=0.1).fit(trusted, labels)
    expected = judge.judge(queries)
    order = np.random.default_rng(3).permutation(37)
    for size in (1, 10):
        # All in tens, a few alone.
        for start in range(0, 37 if size > 1 else 6, size):
            some = order[start : start + size]
            found = judge.judge(queries.take(some))
            assert found.ids == [expected.ids[i] for i in some]
            np.testing.assert_allclose(found.score, expected.score[some], rtol=TOLERANCE, atol=TOLERANCE)
            np.testing.assert_allclose(found.p_value, expected.p_value[some], atol=TOLERANCE)
            np.testing.assert_array_equal(found.flagged, expected.flagged[some])
            for kind, values in expected.parts.items():
                np.testing.assert_allclose(found.parts[kind], values[some], rtol=TOLERANCE, atol=TOLERANCE)
