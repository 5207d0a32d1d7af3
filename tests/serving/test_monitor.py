"""The monitor: the bare network's bits, the detector's verdicts, and an answer whatever happens to the verdicts."""

from __future__ import annotations

import logging
import queue
import threading
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.models.network import sharing_weights
from covary.scoring.rows import Batch
from covary.serving.monitor import Monitor, MonitorResult
from covary.serving.monitor.deferred import BackgroundWorker
from covary.serving.monitor.one_pass import OnePass, same_bits


@pytest.fixture(scope="module")
def x(fitted) -> Tensor:
    return next(fitted.open(tiny.inputs()[0]).batches(1000)).x


def bits(found, module: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        return same_bits(found, module(x))


def test_outputs_are_the_bare_networks_and_verdicts_the_detectors(fitted, x):
    monitor = Monitor(fitted)
    expected = fitted.score(tiny.inputs()[0])
    verdicts = None
    for _ in range(2):  # once compared with the bare network, once not
        outputs, verdicts = monitor(x)
        assert bits(outputs, fitted.network.module, x)
        assert not outputs.requires_grad
        np.testing.assert_allclose(verdicts.score, expected.score, rtol=1e-4)
        assert (verdicts.flagged == expected.flagged).all()
    assert verdicts.ids[0] == str(len(x))
    assert monitor(x[:2], ids=["a", "b"])[1].ids == ["a", "b"]
    assert monitor.notes == []
    assert monitor.counts.judged == monitor.counts.seen == 2 * len(x) + 2


def test_one_pass_is_one_forward(fitted, x):
    monitor = Monitor(fitted)
    monitor(x)
    calls = []
    twin = monitor._pass.extractor.module
    for module in (twin, fitted.network.module):
        module.register_forward_hook(lambda m, *_: calls.append(m))
    try:
        monitor(x)
    finally:
        for module in (twin, fitted.network.module):
            module._forward_hooks.clear()
    assert calls == [twin]


def test_the_copy_shares_weights_and_nothing_else(fitted):
    module = fitted.network.module
    twin = sharing_weights(module, trainable=False).eval()
    for (name, p), q in zip(module.named_parameters(), twin.parameters(), strict=True):
        assert p.data_ptr() == q.data_ptr(), name
        assert not q.requires_grad
    assert [b.data_ptr() for b in module.buffers()] == [b.data_ptr() for b in twin.buffers()]
    twin[0].register_forward_hook(lambda *_: None)
    assert not module[0]._forward_hooks


class Attending(nn.Module):
    """A network with fused attention, whose fast path gives other bits than the hooked one."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.encode(x.squeeze(1))
        return {"hidden": hidden, "logits": self.head(hidden.mean(1))}


class Refusing(nn.Module):
    """A network that `copy.deepcopy` refuses: it is copied module by module, and judged in one pass like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.trained()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return self.inner(x), "said"


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (Attending, {"output": "logits"}, "fused attention"),
        (Refusing, {"output": 0}, None),
        (tiny.trained, {"engine": "exact"}, "sample by sample"),
        (tiny.trained, {"amp": "bf16"}, "second pass"),
        (tiny.trained, {"channels_last": True}, None),
    ],
    ids=["attention", "uncopied", "exact", "amp", "channels-last"],
)
def test_bits_are_kept_where_one_pass_would_change_them(x, module, settings, message):
    torch.manual_seed(0)
    detector = Detector(module(), allow_missing_classes=True, **settings).fit(tiny.trusted())
    monitor = Monitor(detector)
    for part in (x, x, x[:3], x[:1]):
        outputs, verdicts = monitor(part)
        assert bits(outputs, detector.network.module, part)
        assert len(verdicts) == len(part)
    if message is None:
        assert monitor.notes == []
    else:
        assert any(message in note for note in monitor.notes), monitor.notes


def test_a_batch_too_large_for_one_slice(fitted, x, monkeypatch):
    monkeypatch.setattr("covary.features.engine.fast.PASS_BYTES", {"cpu": 2**17, "gpu": 2**17})
    monitor = Monitor(fitted)
    outputs, verdicts = monitor(x)
    assert monitor._pass.extractor._fast.samples_at_once(x) < len(x)
    assert bits(outputs, fitted.network.module, x)
    np.testing.assert_allclose(verdicts.score, fitted.score(tiny.inputs()[0]).score, rtol=1e-3)


def test_deferred_verdicts_come_through_a_queue_or_a_function(fitted, x):
    expected = fitted.score(tiny.inputs()[0]).score
    for taken in (queue.Queue(), []):
        with Monitor(
            fitted, deferred=True, deliver=taken if isinstance(taken, queue.Queue) else taken.append
        ) as monitor:
            kept = x.clone()
            outputs, verdicts = monitor(kept)
            assert verdicts is None
            assert bits(outputs, fitted.network.module, x)
            kept.zero_()  # callers reuse their buffers
            monitor.drain()
            found = taken.get_nowait() if isinstance(taken, queue.Queue) else taken.pop()
            np.testing.assert_allclose(found.score, expected, rtol=1e-4)
    assert monitor.counts.judged == len(x)


def test_closing_finishes_what_was_taken(fitted, x):
    found: list = []
    monitor = Monitor(fitted, deferred=True, deliver=found.append, backlog=50)
    for i in range(12):
        monitor(x[i : i + 1])
    monitor.close()
    assert [v.ids for v in found] == [[str(i)] for i in range(12)]
    outputs, verdicts = monitor(x[:2])
    assert verdicts is None
    assert bits(outputs, fitted.network.module, x[:2])
    assert monitor.counts.dropped == 2
    monitor.close()


def test_a_full_backlog_is_counted_and_never_waited_for(fitted, x):
    gate = threading.Event()
    monitor = Monitor(fitted, deferred=True, deliver=lambda _: gate.wait(30), backlog=1)
    begin = time.monotonic()
    for _ in range(20):
        assert bits(monitor(x[:1])[0], fitted.network.module, x[:1])
    assert time.monotonic() - begin < 20
    assert monitor.counts.dropped >= 17
    gate.set()
    monitor.close()
    assert monitor.counts.judged + monitor.counts.dropped == 20


def test_what_a_receiver_raises_stops_nothing(fitted, x, caplog):
    seen = []

    def receive(verdicts):
        seen.append(verdicts)
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR), Monitor(fitted, deferred=True, deliver=receive) as monitor:
        monitor(x[:1])
        monitor(x[1:2])
        monitor.drain()
    assert len(seen) == 2
    assert "lost" in caplog.text


def test_a_sampling_rate_spares_batches_by_lot(fitted, x, monkeypatch):
    monitor, one = Monitor(fitted, rate=0.3, seed=1), Monitor(fitted)(x[:1])[1]
    monkeypatch.setattr(monitor, "_examine", lambda batch: MonitorResult(None, one))
    judged = [monitor(x[:1])[1] is not None for _ in range(200)]
    assert 35 <= sum(judged) <= 85
    assert monitor.counts.unsampled == 200 - sum(judged)
    again = Monitor(fitted, rate=0.3, seed=1)
    monkeypatch.setattr(again, "_examine", lambda batch: MonitorResult(None, one))
    assert judged[:40] == [again(x[:1])[1] is not None for _ in range(40)]


def test_many_threads_get_their_own_answers(fitted, x):
    monitor, module = Monitor(fitted), fitted.network.module
    alone = Monitor(fitted)(x)[1].score
    wrong: list[int] = []

    def work(k: int) -> None:
        for i in range(k, 24, 4):
            outputs, verdicts = monitor(x[i : i + 1], ids=[str(i)])
            if not (bits(outputs, module, x[i : i + 1]) and np.allclose(verdicts.score, alone[i], rtol=1e-3)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert monitor.counts.judged == monitor.stream.n == 24


def test_the_bare_network_may_run_meanwhile(fitted, x):
    """Another thread uses the network itself: it sees no hook, and the verdicts see none of its inputs."""
    module, stop, odd = fitted.network.module, threading.Event(), []
    with torch.no_grad():
        expected = module(x[:5])

    def use() -> None:
        while not stop.is_set():
            with torch.no_grad():
                if not same_bits(module(x[:5]), expected):
                    odd.append(1)

    thread = threading.Thread(target=use)
    monitor, alone = Monitor(fitted), Monitor(fitted)(x)[1].score
    thread.start()
    try:
        for _ in range(3):
            np.testing.assert_allclose(monitor(x)[1].score, alone, rtol=1e-4)
    finally:
        stop.set()
        thread.join()
    assert odd == []


def test_an_input_without_a_finite_gradient_is_flagged_and_the_others_judged(fitted, x, caplog):
    bad = x[:6].clone()
    bad[2] = float("nan")
    monitor = Monitor(fitted)
    watched = monitor.watch(bad)
    assert bits(watched.outputs, fitted.network.module, bad)
    verdicts = watched.verdicts
    assert verdicts.flagged[2]
    assert np.isinf(verdicts.score[2])
    assert verdicts.p_value[2] == fitted.judge.p_min
    assert verdicts.predicted[2] == -1
    others = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(verdicts.score[others], Monitor(fitted)(x[:6])[1].score[others], rtol=1e-3)
    assert watched.judged.tolist() == others
    assert len(watched.rows) == 5
    assert "'2'" in caplog.text
    only = monitor.watch(bad[2:3])
    assert only.rows is None
    assert only.verdicts.flagged.all()


def test_an_error_of_the_network_is_the_networks(fitted, x):
    with pytest.raises(RuntimeError, match="channels"):
        Monitor(fitted)(torch.zeros(2, 3, 8, 8))


def test_a_failing_judge_costs_verdicts_alone(fitted, x, monkeypatch, caplog):
    monitor = Monitor(fitted)
    monkeypatch.setattr(monitor.judge, "verdicts", lambda *_: 1 / 0)
    outputs, verdicts = monitor(x[:4])
    assert verdicts is None
    assert bits(outputs, fitted.network.module, x[:4])
    assert monitor.counts.failed == 4
    assert "4 inputs were not examined" in caplog.text


def test_an_empty_batch_is_answered(fitted, x):
    outputs, verdicts = Monitor(fitted)(x[:0])
    assert outputs.shape == (0, 10)
    assert verdicts is None


def test_the_stream_alarm_sees_every_score(fitted, x):
    monitor = Monitor(fitted)
    truth = tiny.inputs()[2]
    monitor(x[truth == 0])
    assert not monitor.stream.alarmed
    monitor(x[truth == 1])
    assert monitor.stream.alarmed
    assert monitor.stream.calibration == len(fitted.judge.stream_calibration)


def test_across_folds_the_first_split_scores_the_stream():
    x, y = tiny.trusted()
    detector = Detector(tiny.trained(), allow_missing_classes=True).fit((x[:100], y[:100]))
    monitor = Monitor(detector)
    assert monitor.stream.calibration == len(detector.judge.roles["calibration 0"]) == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rate": 0.0}, "sampling rate"), ({"rate": 1.5}, "sampling rate"), ({"deferred": True}, "place for its verdicts"),
     ({"level": 2.0}, "between 0 and 1")],
)  # fmt: skip
def test_settings_that_make_no_sense(fitted, settings, message):
    with pytest.raises(CovaryError, match=message):
        Monitor(fitted, **settings)


def test_an_unfitted_detector_is_refused():
    with pytest.raises(CovaryError, match="fit"):
        Monitor(Detector(tiny.trained()))


def test_bits_are_compared_as_bits():
    one = {"a": torch.tensor([0.0, float("nan")]), "b": [torch.ones(2, dtype=torch.bool), 3]}
    other = {"a": torch.tensor([0.0, float("nan")]), "b": [torch.ones(2, dtype=torch.bool), 3]}
    assert same_bits(one, other)
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(3))
    assert not same_bits(torch.zeros(2), torch.zeros(2).double())
    assert not same_bits((torch.zeros(2),), [torch.zeros(2)])
    assert not same_bits([object()], [object()])


def test_later_refuses_after_closing():
    done: list[int] = []
    later = BackgroundWorker(done.append, 3)
    assert later.offer(1)
    later.close()
    assert not later.offer(2)
    assert done == [1]


def test_rows_of_the_first_batch_come_from_a_checked_engine(fitted, x):
    one_pass = OnePass(fitted)
    assert one_pass.apart
    assert not one_pass._warm
    one_pass(Batch(["a", "b"], x[:2]))
    assert one_pass._warm


def test_a_window_tells_what_the_latest_inputs_show_beside_the_verdict(fitted, x):
    plain, monitor = Monitor(fitted, window=0), Monitor(fitted, window=50)
    assert len(plain(x)[1].window_p) == 0
    verdicts = monitor(x)[1]
    assert monitor.window.n == 50
    assert ((verdicts.window_p > 0) & (verdicts.window_p <= 1)).all()
    np.testing.assert_allclose(verdicts.p_value, plain(x)[1].p_value)
    assert monitor.counts.flagged_by_window == int((verdicts.window_p <= monitor.window.fpr_in_force).sum())
    odd = tiny.inputs()[2] == 1
    assert verdicts.window_p[odd].mean() < verdicts.window_p[~odd].mean()


def test_the_stream_alarm_is_the_same_with_a_window_and_without(fitted, x):
    with_one, without = Monitor(fitted, seed=3), Monitor(fitted, seed=3, window=0)
    for part in x.split(13):
        with_one(part)
        without(part)
    assert with_one.stream.log_capital == without.stream.log_capital
    assert with_one.stream.alarm_at == without.stream.alarm_at


def test_a_failing_window_is_given_up_and_loses_no_verdict(fitted, x, monkeypatch, caplog):
    monitor = Monitor(fitted)
    monkeypatch.setattr(monitor.window, "_enter", lambda *_: 1 / 0)
    verdicts = monitor(x[:8])[1]
    assert len(verdicts) == 8
    assert len(verdicts.window_p) == 0
    assert monitor.window is None
    assert "the window is given up" in caplog.text
