"""Traces of answers along draws: those of networks with moved weights, and in the limit the cosine of gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import texts
from covary.errors import CovaryError
from covary.features.sampled.samplers import SamplingPlan
from covary.scoring.couplings import couple
from covary.text.extractor import TextExtractor
from covary.text.features.traces import text_draws, text_rows_on_draws

SOME = texts.tokens(8)


def gaussian(sigma, draws, **more):
    return SamplingPlan("gaussian", {"sigma": sigma}, steps=draws, burn_in=0, batchnorm="frozen", **more)


def test_traces_are_the_observable_of_a_network_with_moved_weights():
    model, plan = texts.causal(), gaussian(0.02, 3)
    rows = text_rows_on_draws(model, plan, SOME, batch_size=3)
    values = []
    for weights in text_draws(model, plan):
        moved = copy.deepcopy(model.module)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter.copy_(weights[name])
        values.append(
            TextExtractor(type(model)(moved, model.tokenizer), pooling="mean").rows(texts.batch(SOME)).observable
        )
    centred = np.stack(values) - np.mean(values, 0)
    np.testing.assert_allclose(rows.functional["trace"], centred.T / np.sqrt(3), atol=2e-4)
    still = TextExtractor(model, pooling="mean").rows(texts.batch(SOME))
    for name in ("margin", "energy"):
        np.testing.assert_allclose(rows.confidence[name], still.confidence[name], atol=1e-4)


def test_small_draws_agree_with_gradients():
    model = texts.causal()
    rows = text_rows_on_draws(model, gaussian(1e-3, 300), SOME)
    gradients = TextExtractor(model).rows(texts.batch(SOME))
    one, other = couple("cosine", rows, rows), couple("cosine", gradients, gradients)
    assert np.abs(one - other).mean() < 0.1
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9


def test_a_chain_descends_on_the_sampling_texts():

    model = texts.causal()
    plan = SamplingPlan("sgld", {"step_size": 1e-7}, steps=2, burn_in=0, minibatch=4, batchnorm="frozen")
    first, _ = list(text_draws(model, plan, SOME[:4]))
    assert set(first) == {name for name, _ in model.module.named_parameters()}
    again, _ = list(text_draws(model, plan, SOME[:4]))
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(CovaryError, match="without sampling texts"):
        next(text_draws(model, plan))
    only = next(text_draws(model, gaussian(0.1, 2), space="pattern:*mlp*"))
    assert all("mlp" in name for name in only)
