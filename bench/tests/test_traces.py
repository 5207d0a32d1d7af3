"""Traces against loops, the first-order limit, and what must not change them: batch size, vectorisation, workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from covary.errors import CovaryError
from covary.features.observables import margin, nll
from covary.features.sampled.chains import Minibatches, run_block, start
from covary.features.sampled.samplers import SamplingPlan
from covary.features.sampled.samplers.rmsprop_sgld import RmspropSgldSettings, init, step
from covary.features.sampled.samplers.state import generator_for, members
from covary.features.sampled.traces import evaluate, rows_from_traces
from covary.models.functional import functional_network
from covary.scoring.couplings import couple
from covary_bench.traces import record_traces
from sampling_cases import images, plan, tiny, tiny_module

GAUSSIAN = SamplingPlan(sampler="gaussian", steps=12, burn_in=0, batchnorm="frozen")


def by_hand(settings: RmspropSgldSettings, steps: int, batchnorm: str) -> tuple[np.ndarray, np.ndarray]:
    """Margins and losses along chain 0 by an ordinary training loop on an ordinary module."""
    module, (x, y) = tiny_module(), images(40)
    samples, _ = images(20, seed=2)
    labels = module(samples).argmax(-1)
    w_star = {name: p.detach().clone() for name, p in module.named_parameters()}
    state, generator, batches = init(w_star, settings), generator_for(0, 0), Minibatches(40, 16, 0, 0)
    margins, losses = [], []
    for number in range(steps):
        module.train()
        if batchnorm == "frozen":
            module[1].eval()
        index = batches.at(number)
        module.zero_grad()
        loss = nn.functional.cross_entropy(module(x[index]), y[index])
        loss.backward()
        gradient = {name: p.grad.clone() for name, p in module.named_parameters()}
        state = step(state, gradient, w_star, settings, generator)
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(members(state, "w")[name])
            margins.append(margin(module.eval()(samples), labels).numpy())
        losses.append(loss.item())
    return np.stack(margins), np.array(losses)


@pytest.mark.parametrize("batchnorm", ["drift", "frozen"])
def test_chain_is_an_ordinary_training_loop_around_the_step(batchnorm):
    network, data, x, ids = tiny()
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    settings = {"localisation": 400.0, "nbeta": 100.0, "step_size": 1e-4}
    found = record_traces(network, plan(batchnorm=batchnorm, chains=1, settings=settings), x, ids, data)
    margins, losses = by_hand(RmspropSgldSettings(**settings), 24, batchnorm)
    # Burn-in of 4, then every second draw.
    np.testing.assert_allclose(found.values["margin"][0], margins[5::2], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.loss[0], losses, rtol=1e-4)
    for name, value in network.module.state_dict().items():
        assert torch.equal(value, before[name]), f"the chain wrote into the module's own {name}"


def test_drift_and_frozen_statistics_differ():
    network, data, x, ids = tiny()
    drift = record_traces(network, plan(chains=1), x, ids, data)
    frozen = record_traces(network, plan(chains=1, batchnorm="frozen"), x, ids, data)
    assert np.abs(drift.values["margin"] - frozen.values["margin"]).max() > 1e-2


def test_both_observables_at_frozen_labels_and_chains_differ():
    network, data, x, ids = tiny()
    found = record_traces(network, plan(), x, ids, data)
    assert found.values["margin"].shape == (2, 10, 20)
    logits = network.module(x)
    labels = logits.argmax(-1)
    np.testing.assert_array_equal(found.predicted, labels.numpy())
    np.testing.assert_allclose(found.at_w_star["margin"], margin(logits, labels).detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.at_w_star["nll"], nll(logits, labels).detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.values["nll"], np.logaddexp(0, -found.values["margin"]), rtol=1e-4, atol=1e-6)
    assert not np.allclose(found.values["margin"][0], found.values["margin"][1])


@pytest.mark.parametrize("sampler", ["rmsprop_sgld", "gaussian"])
def test_batch_size_and_draws_at_once_change_nothing_but_rounding(sampler):
    network, data, x, ids = tiny(dropout=0.3)
    chosen = plan() if sampler == "rmsprop_sgld" else GAUSSIAN
    first = record_traces(network, chosen, x, ids, data, batch_size=64, block=50)
    for batch_size, at_once, block in [(1, 1, 50), (7, 3, 4), (20, 5, 50)]:
        torch.manual_seed(batch_size)  # nothing may hang on the global generator
        again = record_traces(network, chosen, x, ids, data, batch_size=batch_size, draws_at_once=at_once, block=block)
        np.testing.assert_allclose(again.values["margin"], first.values["margin"], rtol=1e-4, atol=1e-5)


def test_minibatches_are_epochs_of_a_fresh_permutation_each():
    batches = Minibatches(10, 4, seed=0, chain=0)
    first = torch.cat([batches.at(step) for step in range(3)])
    second = torch.cat([batches.at(step) for step in range(3, 6)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    assert torch.equal(Minibatches(10, 4, 0, 0).at(4), batches.at(4))
    assert len(Minibatches(3, 256, 0, 0).at(5)) == 3


def test_rows_have_the_traces_moments():
    network, data, x, ids = tiny()
    found = record_traces(network, plan(), x, ids, data)
    rows = rows_from_traces(found)
    traces = found.values["margin"].reshape(-1, 20).astype(np.float64)
    np.testing.assert_allclose(couple("covariance", rows, rows), np.cov(traces.T, bias=True), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(couple("cosine", rows, rows), np.corrcoef(traces.T), atol=1e-5)
    np.testing.assert_allclose(rows.functional_norms[:, 0], traces.std(0), rtol=1e-5)
    lin = couple("ccc", rows, rows)
    for i, j in [(0, 1), (3, 3), (7, 12)]:
        a, b = traces[:, i], traces[:, j]
        by_definition = 2 * np.mean((a - a.mean()) * (b - b.mean()))
        by_definition /= a.var() + b.var() + (a.mean() - b.mean()) ** 2 + 1e-8
        assert lin[i, j] == pytest.approx(by_definition, abs=1e-5)
    some = rows_from_traces(found, index=np.array([4, 2]))
    assert list(some.ids) == ["image-4", "image-2"]
    np.testing.assert_array_equal(some.functional["trace"], rows.functional["trace"][[4, 2]])


def test_pearson_of_small_gaussian_traces_is_the_cosine_of_gradients():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(24, 12, dtype=torch.float64)
    gradients = []
    for sample in x:
        logits = module(sample[None])
        value = margin(logits, logits.argmax(-1))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value.sum(), list(module.parameters()))]))
    unit = torch.nn.functional.normalize(torch.stack(gradients), dim=1).numpy()
    cosine = unit @ unit.T

    network = functional_network(module)
    small = SamplingPlan(sampler="gaussian", settings={"sigma": 1e-3}, steps=2000, burn_in=0, batchnorm="frozen")
    found = record_traces(network, small, x, [str(i) for i in range(24)], batch_size=24, draws_at_once=100)
    rows = rows_from_traces(found)
    pearson = couple("cosine", rows, rows)
    off = ~np.eye(24, dtype=bool)
    assert spearmanr(pearson[off], cosine[off]).statistic > 0.95
    # Monte Carlo error of a correlation of 2,000 draws is 0.022; nothing beyond it.
    assert np.abs(pearson - cosine).max() < 0.1


def test_divergence_names_chain_step_and_setting():
    network, data, x, ids = tiny()
    loss_first = r"chain 0 of sgld diverged at step \d+: its loss is not .*lower step_size \(now 1\)"
    with pytest.raises(CovaryError, match=loss_first):
        record_traces(network, plan(sampler="sgld", settings={"step_size": 1.0}), x, ids, data, block=3)
    # A free random walk: finite, but soon no longer the network.
    walk = plan(sampler="sgld", settings={"step_size": 0.2, "localisation": 0.0, "nbeta": 0.0}, chains=1, steps=60)
    with pytest.raises(CovaryError, match=r"chain 0 of sgld diverged at step \d+: accuracy on its sampling data fell"):
        record_traces(network, walk, x, ids, data, block=5)
    with pytest.raises(CovaryError, match="has no sampling data"):
        record_traces(network, plan(), x, ids)


def test_channels_last_bf16_and_compile_are_options_that_hardly_move_traces():
    _, data, x, ids = tiny()
    plain = record_traces(functional_network(tiny_module()), GAUSSIAN, x, ids)
    last = functional_network(tiny_module(), channels_last=True)
    found = record_traces(last, GAUSSIAN, last.place(x), ids)
    np.testing.assert_allclose(found.values["margin"], plain.values["margin"], rtol=1e-3, atol=1e-4)
    half = functional_network(tiny_module(), autocast=torch.bfloat16)
    found = record_traces(half, GAUSSIAN, x, ids)
    assert found.values["margin"].dtype == np.float32
    np.testing.assert_allclose(found.values["margin"], plain.values["margin"], atol=0.1)
    chain = record_traces(half, plan(chains=1), x, ids, data)
    assert np.isfinite(chain.loss).all()


class HostReads(TorchDispatchMode):
    """Counts reads of a single number, each of which makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.reads.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampler", ["rmsprop_sgld", "sgld", "gaussian"])
def test_no_step_waits_for_the_device(sampler):
    network, data, x, _ = tiny()
    labels = network.module(x).argmax(-1)
    chosen = plan(sampler=sampler, chains=1)
    with HostReads() as host:
        run_block(
            start(network, chosen, 0), network, chosen, data, 5,
            lambda weights, buffers: evaluate(network, [(weights, buffers)], x, labels, ["margin", "nll"]),
        )  # fmt: skip
    assert not host.reads
    with HostReads() as host:
        float(labels[0])
    assert host.reads, "the counter counts nothing"


def test_stop_ends_chains_early_at_the_same_draw():
    network, data, x, ids = tiny()
    found = record_traces(network, plan(), x, ids, data, block=3, stop=lambda t: t.values["margin"].shape[1] >= 6)
    full = record_traces(network, plan(), x, ids, data)
    assert found.values["margin"].shape == (2, 6, 20)
    assert found.loss.shape == (2, 16)
    np.testing.assert_array_equal(found.values["margin"], full.values["margin"][:, :6])
