"""A killed run resumes and ends as an uninterrupted one does, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from covary.errors import CovaryError
from covary_bench import trace_store
from covary_bench.trace_store import TraceStore, read_traces
from covary_bench.traces import record_traces
from sampling_cases import plan, tiny

pytest.importorskip("xarray", reason="the extra `sampling` is not installed")
pytest.importorskip("zarr", reason="the extra `sampling` is not installed")


class Killed(BaseException):
    pass


def same(one, other) -> None:
    for name in one.values:
        np.testing.assert_array_equal(one.values[name], other.values[name])
    np.testing.assert_array_equal(one.loss, other.loss)
    np.testing.assert_array_equal(one.accuracy, other.accuracy)
    np.testing.assert_array_equal(one.predicted, other.predicted)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The whole run, written in blocks; held in memory with blocks of another size it is the same."""
    network, data, x, ids = tiny(dropout=0.3)
    full = record_traces(network, plan(), x, ids, data, folder=tmp_path_factory.mktemp("whole") / "w", block=4)
    same(record_traces(network, plan(), x, ids, data), full)
    return full


@pytest.mark.parametrize("kill_at", [0, 1, 5])
@pytest.mark.parametrize("between", [False, True], ids=["before the block", "between block and checkpoint"])
def test_resume_is_the_uninterrupted_run_to_the_bit(
    tmp_path, monkeypatch, kill_at, between, uninterrupted
):  # fmt: skip
    network, data, x, ids = tiny(dropout=0.3)
    original, writes = TraceStore.write, []

    def dying(self, *args):
        if len(writes) == kill_at:
            if between:
                monkeypatch.setattr(trace_store, "save_file", lambda *a, **k: (_ for _ in ()).throw(Killed()))
                original(self, *args)
            raise Killed
        writes.append(1)
        original(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(TraceStore, "write", dying)
        patched.setattr(trace_store, "save_file", trace_store.save_file)
        with pytest.raises(Killed):
            record_traces(network, plan(), x, ids, data, folder=tmp_path / "killed", block=4)
    monkeypatch.undo()
    again = record_traces(network, plan(), x, ids, data, folder=tmp_path / "killed", block=4)
    same(again, uninterrupted)
    same(read_traces(tmp_path / "killed"), uninterrupted)
    assert not list((tmp_path / "killed").glob("*.part"))


def test_a_process_killed_by_a_signal_resumes(tmp_path):
    # All in processes of their own: what other tests did to this one would make another network.
    code = """
import sys, time
import torch
torch.set_num_threads(1)
from sampling_cases import plan, tiny
from covary_bench.traces import record_traces
network, data, x, ids = tiny()
def stop(traces):
    print(traces.values["margin"].shape[1], flush=True)
    time.sleep(float(sys.argv[-1]))
    return False
for folder in sys.argv[1:-1]:
    record_traces(network, plan(steps=104), x, ids, data, folder=folder, block=4, stop=stop)
"""
    path = [str(Path(__file__).parents[2] / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

    def started(wait, *folders):
        command = [sys.executable, "-c", code, *map(str, folders), str(wait)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    child = started(0.3, tmp_path / "killed")
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 12:
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert read_traces(tmp_path / "killed").values["margin"].shape[1] == 0, "the second chain had not begun"
    with started(0, tmp_path / "killed", tmp_path / "whole") as child:
        assert child.wait() == 0
    same(read_traces(tmp_path / "killed"), read_traces(tmp_path / "whole"))


def test_a_folder_of_something_else_is_refused(tmp_path):
    network, data, x, ids = tiny()
    record_traces(network, plan(), x, ids, data, folder=tmp_path, block=4)
    with pytest.raises(CovaryError, match="whose plan is"):
        record_traces(network, plan(seed=1), x, ids, data, folder=tmp_path, block=4)
    with pytest.raises(CovaryError, match="whose samples is"):
        record_traces(network, plan(), x + 1e-3, ids, data, folder=tmp_path, block=4)
    with pytest.raises(CovaryError, match="whose block is 4; expected 5"):
        record_traces(network, plan(), x, ids, data, folder=tmp_path, block=5)
    with pytest.raises(CovaryError, match="no traces at"):
        read_traces(tmp_path / "elsewhere")


def test_store_has_named_dims_for_xarray(tmp_path):
    import xarray

    network, data, x, ids = tiny()
    record_traces(network, plan(), x, ids, data, folder=tmp_path, block=4)
    stored = xarray.open_zarr(tmp_path / "traces.zarr", consolidated=False)
    assert stored["margin"].dims == ("chain", "draw", "sample")
    assert stored["margin"].sel(sample="image-3").shape == (2, 10)
