"""A pile scored over a Ray cluster of two workers: the local run's verdicts to the bit, with a worker killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

import pile_cases
import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.serving.pile import on_ray, score
from covary.serving.pile.score import score_pile

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytest.importorskip("pyarrow", reason="the extra `ray` is not installed")
pytestmark = [
    pytest.mark.timeout(600),
    # Ray Data looks at its own deprecated settings whenever it starts.
    pytest.mark.filterwarnings("ignore:`use_[a-z0-9_]+` is deprecated:DeprecationWarning"),
]

SIZES = {"partition_size": 4, "batch_size": 4, "trust_code": True}


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two processors on this machine, for all tests here: it takes long to start."""
    with on_ray.cluster(on_ray.LOCAL, workers=2) as ray:
        yield ray


@pytest.fixture(scope="module")
def slow_detector(tmp_path_factory):
    """A detector whose inputs take a while where Ray runs it."""
    detector = Detector("tiny:trained").fit(tiny.trusted(), transform="pile_cases:slowly")
    return detector.save(tmp_path_factory.mktemp("slow") / "detector")


def test_a_killed_worker_loses_and_duplicates_nothing(cluster, slow_detector, tmp_path):
    data = pile_cases.write_npz(tmp_path)
    alone = score_pile(slow_detector, data, tmp_path / "alone", fdr=0.2, **SIZES)
    records, there = [], []

    def on_partition(record):
        if not records:
            there.append(len(list((tmp_path / "ray").glob("part-*.parquet"))))
            os.kill(record["pid"], signal.SIGKILL)
        records.append(record)

    over = score_pile(
        slow_detector, data, tmp_path / "ray", fdr=0.2, ray="local", actors=2, on_partition=on_partition, **SIZES
    )
    assert 1 <= there[0] < 40, "the worker was killed before or after the work, not amid it"
    assert sorted(record["number"] for record in records) == list(range(40))
    pids = {record["pid"] for record in records}
    assert len(pids) == 3, "nobody took the killed worker's place"
    assert pile_cases.columns(tmp_path / "ray")["id"] == pile_cases.IDS
    pile_cases.same(tmp_path / "ray", tmp_path / "alone")
    assert over["verdicts"] == alone["verdicts"]
    assert (over["n"], over["n_flagged"]) == (160, alone["n_flagged"])
    assert alone["n_flagged"] > 0
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert {path.name for path in (tmp_path / "ray").iterdir()} == names


def test_a_url_a_second_pass_over_the_cluster_and_a_broken_input(cluster, saved_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(score, "FEW", 0)
    sizes = {"partition_size": 80, "batch_size": 16, "trust_code": True}
    data = pile_cases.write_zip(tmp_path)
    score_pile(saved_folder, data, tmp_path / "alone", **sizes)
    out = f"file://{tmp_path / 'ray'}"
    score_pile(saved_folder, data, out, ray="local", actors=1, **sizes)
    pile_cases.same(tmp_path / "ray", tmp_path / "alone")
    np.savez(tmp_path / "bad.npz", x=np.full((20, 1, 8, 8), np.nan, np.float32))
    with pytest.raises(CovaryError, match=r"^input '0' of .*bad.npz holds NaN or infinity; expected finite numbers"):
        score_pile(saved_folder, str(tmp_path / "bad.npz"), tmp_path / "bad", ray="local", actors=1, **sizes)


def test_a_pile_judged_together_over_the_cluster_gives_a_local_run_s_bits(cluster, saved_folder, tmp_path):
    sizes = {"partition_size": 32, "batch_size": 16, "trust_code": True, "together": True}
    data = pile_cases.write_npz(tmp_path)
    alone = score_pile(saved_folder, data, tmp_path / "alone", **sizes)
    over = score_pile(saved_folder, data, tmp_path / "ray", ray="local", actors=2, **sizes)
    pile_cases.same(tmp_path / "ray", tmp_path / "alone")
    assert over["verdicts"] == alone["verdicts"]
    assert over["statements"] == alone["statements"]


def test_fewer_processors_than_one_actor_takes(cluster, saved_folder, tmp_path):
    data = pile_cases.write_npz(tmp_path)
    with pytest.raises(CovaryError, match="the Ray cluster has 2 CPUs and 0 GPUs; expected 3 and 0 for each actor"):
        score_pile(saved_folder, data, tmp_path / "out", ray="local", threads=3, trust_code=True)


def test_an_address_where_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(CovaryError, match=f"no Ray cluster at {address} .*refused"), on_ray.cluster(address):
        pass


def test_ray_is_loaded_for_clusters_alone_and_never_reports_its_use():
    code = """
import os, sys
import covary, covary.cli.main, covary.serving.pile.score, covary.serving.pile.on_ray as on_ray
covary.Detector
assert "ray" not in sys.modules
on_ray.ray_modules()
assert "ray" in sys.modules and os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
from ray._common.usage import usage_lib
assert not usage_lib.usage_stats_enabled()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
