"""What a sampled detector tells of its draws: numbers a reader can check, and nothing that JSON cannot hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from covary.errors import missing_extra
from covary.features.sampled import diagnostics
from covary.features.sampled import summary as sampling_told
from covary.features.sampled.draws import Bank
from covary.features.sampled.summary import diagnosed, traces
from covary.features.sampled.traces import Traces, rows_from_traces
from covary.settings import Settings

PLAN = {"sampler": "rmsprop_sgld", "settings": {"nbeta": 100.0}, "chains": 2, "burn_in": 10, "thinning": 1,
        "batchnorm": "drift"}  # fmt: skip


def case(observable="margin", draws=200, n=30, still=0):
    rng = np.random.default_rng(0)
    values = rng.normal(2.0, 1.0, (2, draws, n)).astype(np.float32)
    values[:, :, :still] = 3.0
    base = values.mean((0, 1)).astype(np.float64)
    if observable == "nll":
        values = np.logaddexp(0, -values)
    kept = Traces([f"i{i}" for i in range(n)], np.zeros(n, np.int64), {observable: base}, {observable: values})
    steps = draws + 10
    bank = Bank({"w": torch.zeros(2 * draws, 1)}, {}, PLAN, rng.random((2, steps)), rng.random((2, steps)))
    return values, rows_from_traces(kept, observable), bank


@pytest.mark.parametrize("observable", ["margin", "nll"])
def test_traces_come_back_from_rows(observable):
    values, rows, _ = case(observable)
    np.testing.assert_allclose(traces(rows, "trace", 2), values, atol=1e-4)


def test_diagnostics_are_those_of_the_traces():
    pytest.importorskip("arviz_stats", reason="the extra `sampling` is not installed")
    values, rows, bank = case(still=2)
    message = diagnosed(bank, Settings.checked(estimator="paper", observable="margin"), rows)
    json.dumps(message, allow_nan=False)
    said = diagnostics.verdict(values, values)
    assert message["verdict"]["effective"] == pytest.approx(said.effective, rel=1e-2)
    assert message["verdict"]["rhat"] == pytest.approx(said.rhat, rel=1e-2)
    assert message["verdict"]["still"] == 2
    assert message["verdict"]["kept"] == pytest.approx(said.kept)
    assert message["verdict"]["error"] == pytest.approx(1 / np.sqrt(message["verdict"]["effective"]))
    assert message["verdict"]["sentences"]
    assert (message["draws"], message["chains"]) == (400, 2)
    assert len(message["loss"]) == 2
    assert message["steps"][0] == 1
    assert message["steps"][-1] == 210
    assert message["loss"][1][0] == pytest.approx(bank.loss[1, 0], rel=1e-4)
    found = message["sample_traces"]
    spread = [np.std(own["values"]) for own in found]
    assert len(found) == 4
    assert spread == sorted(spread)
    assert found[-1]["id"] == f"i{int(values.std((0, 1)).argmax())}"
    np.testing.assert_allclose(found[-1]["values"], values[:, :, values.std((0, 1)).argmax()], rtol=1e-3, atol=1e-3)


def test_margins_are_read_off_the_nll():
    values, rows, bank = case("nll")
    message = diagnosed(bank, Settings.checked(estimator="paper"), rows)
    assert message["verdict"]["kept"] == pytest.approx((values < np.log(2)).mean(), abs=1e-3)


def test_long_chains_are_thinned_and_independent_draws_have_no_loss():
    _, rows, bank = case(draws=400)
    message = diagnosed(bank, Settings.checked(estimator="paper", observable="margin"), rows)
    assert len(message["trace_draws"]) == len(message["sample_traces"][0]["values"][1]) == 300
    still = Bank(bank.deltas, {}, {**PLAN, "sampler": "gaussian"}, np.full((2, 400), np.nan), np.full((2, 400), np.nan))
    message = diagnosed(still, Settings.checked(estimator="gaussian"), rows)
    assert message["loss"] == message["accuracy"] == message["steps"] == []


def test_without_the_extra_draws_work_and_the_lack_is_told(monkeypatch):
    def missing(*_, **__):
        raise missing_extra("arviz-stats", "sampling")

    monkeypatch.setattr(sampling_told.diagnostics, "verdict", missing)
    _, rows, bank = case()
    message = diagnosed(bank, Settings.checked(estimator="gaussian"), rows)
    assert message["verdict"]["good"] is None
    assert "pip install 'covary[sampling]'" in message["verdict"]["sentences"][0]
    assert message["sample_traces"]
