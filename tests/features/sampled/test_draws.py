"""Banks of draws: saved and loaded they give the rows of the run that made them, at a stated cost in half precision."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from covary.errors import CovaryError
from covary.features.sampled.draws import coupling_error, draw_bank, load_bank, save_bank, to_half
from covary.features.sampled.rows import rows_on_draws, sampling_data, with_chosen_sigma
from covary.features.sampled.samplers import SamplingPlan
from covary.features.sampled.traces import rows_from_traces
from covary.models.functional import functional_network
from covary.scoring.couplings import couple
from covary.scoring.rows import Batch, Rows
from covary_bench.traces import record_traces
from sampling_cases import images, plan, tiny, tiny_module

GAUSSIAN = SamplingPlan(sampler="gaussian", steps=16, burn_in=0, batchnorm="frozen")


def batches(sizes: list[int], labelled: bool = False) -> list[Batch]:
    x, y = images(sum(sizes), seed=2)
    ids = [f"image-{i}" for i in range(len(x))]
    ends = np.cumsum([0, *sizes])
    return [Batch(ids[a:b], x[a:b], y[a:b].numpy() if labelled else None) for a, b in pairwise(ends)]


@pytest.mark.parametrize("sampler", ["rmsprop_sgld", "gaussian"])
def test_rows_on_a_bank_are_the_rows_of_recorded_traces(sampler, tmp_path):
    network, data, x, ids = tiny()
    chosen = plan() if sampler == "rmsprop_sgld" else GAUSSIAN
    recorded = rows_from_traces(record_traces(network, chosen, x, ids, data))
    bank = draw_bank(network, chosen, data)
    # Running statistics that drift are part of a draw; frozen ones are not stored.
    assert bool(bank.buffers) == (sampler == "rmsprop_sgld")
    save_bank(bank, tmp_path / "draws.safetensors")
    again = load_bank(tmp_path / "draws.safetensors", network)
    assert again.plan == bank.plan
    for sizes in ([20], [7, 13]):
        found = Rows.concatenate([rows_on_draws(network, again, batch) for batch in batches(sizes)])
        np.testing.assert_allclose(found.functional["trace"], recorded.functional["trace"], atol=2e-6)
        np.testing.assert_allclose(found.observable, recorded.observable, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found.predicted, recorded.predicted)
        assert list(found.ids) == ids
        assert set(found.confidence) == {"margin", "energy"}


def test_half_precision_halves_the_deltas_and_hardly_moves_couplings(tmp_path):
    network, *_ = tiny()
    bank = draw_bank(network, GAUSSIAN)
    half = to_half(bank)
    assert half.bytes == bank.bytes / 2
    save_bank(half, tmp_path / "half.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < bank.bytes / 2 + 4096
    one = rows_on_draws(network, bank, batches([20])[0])
    other = rows_on_draws(network, load_bank(tmp_path / "half.safetensors", network), batches([20])[0])
    cost = coupling_error(one.functional["trace"], other.functional["trace"])
    assert 0 < cost < 5e-3
    assert cost == pytest.approx(np.abs(couple("cosine", one, one) - couple("cosine", other, other)).max(), abs=1e-5)
    with pytest.raises(CovaryError, match="full precision"):
        to_half(draw_bank(network, SamplingPlan(sampler="gaussian", settings={"sigma": 1e-6}, steps=4, burn_in=0)))


def test_a_damaged_or_foreign_bank_is_refused(tmp_path):
    network, *_ = tiny()
    path = tmp_path / "draws.safetensors"
    save_bank(draw_bank(network, GAUSSIAN), path)
    other = functional_network(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(CovaryError, match="use the network the bank was drawn for"):
        load_bank(path, other)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CovaryError, match="damaged"):
        load_bank(path)
    with pytest.raises(CovaryError, match="no bank of draws"):
        load_bank(tmp_path / "none")
    assert not list(tmp_path.glob("*.part"))


def test_layerwise_rows_have_one_entry_a_layer_and_move_that_layer_alone():
    network, *_ = tiny()
    bank = draw_bank(network, GAUSSIAN)
    (batch,) = batches([20])
    rows = rows_on_draws(network, bank, batch, layerwise=True)
    assert list(rows.functional) == list(network.layers)
    assert rows.functional_norms.shape == (20, len(network.layers))
    last = functional_network(tiny_module(), space="last-layer")
    alone = {name: bank.deltas[name] for name in last.moving}
    expected = rows_on_draws(last, type(bank)(alone, {}, {}), batch)
    np.testing.assert_allclose(rows.functional["6"], expected.functional["trace"], atol=1e-6)


def test_sampling_data_are_checked():
    network, _, _, _ = tiny()
    with pytest.raises(CovaryError, match="have no labels"):
        sampling_data(network, batches([5]))
    wrong = batches([5], labelled=True)
    assert wrong[0].y is not None
    wrong[0].y[0] = 7
    with pytest.raises(CovaryError, match=r"run from \d to 7; expected 0 to 2"):
        sampling_data(network, wrong)


def test_chosen_sigma_costs_at_most_five_points():
    network, *_ = tiny()
    trusted = batches([60], labelled=True)
    chosen = with_chosen_sigma(network, GAUSSIAN, trusted)
    sigma = chosen.resolved().sigma
    assert 0.0001 <= sigma <= 0.1
    with pytest.raises(CovaryError, match="no sigma"):
        with_chosen_sigma(network, plan(), trusted)
