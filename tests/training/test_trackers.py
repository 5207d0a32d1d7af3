"""A RUN in MLflow, by the real package in a folder of its own; in Weights & Biases offline, where it is installed."""

from __future__ import annotations

import json
import time

import pytest

from covary.errors import CovaryError
from covary.training import trackers
from fake_run import sealed, write_fake_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return sealed(write_fake_run(tmp_path_factory.mktemp("runs") / "a", n=60, pictures=False))


def test_figures_and_settings_have_flat_names(run):
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    found = trackers.metrics(run)
    assert found["covary/flag_rate"] == summary["n_flagged"] / summary["n"]
    assert found["covary/auroc"] == summary["auroc"]
    assert all(isinstance(value, float) for value in found.values())
    message = trackers.parameters(run)
    assert message["covary/preprocessing/mean"] == "[0.485, 0.456, 0.406]"
    assert max(map(len, message.values())) <= trackers.LONGEST


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_figures_settings_and_the_folder(run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "tracked").as_uri())
    try:
        with mlflow.start_run() as mine:
            assert trackers.to_mlflow(run) == mine.info.run_id
            assert mlflow.active_run() is not None
        other = trackers.to_mlflow(run, artifacts=False)
        assert mlflow.active_run() is None
        kept = mlflow.tracking.MlflowClient().get_run(mine.info.run_id).data
        assert kept.metrics == pytest.approx(trackers.metrics(run))
        assert kept.params == trackers.parameters(run)
        assert list((tmp_path / "tracked").rglob("report.json"))
        assert other != mine.info.run_id
    finally:
        mlflow.set_tracking_uri(None)


def test_weights_and_biases_offline(run, tmp_path, monkeypatch):
    """The real package, told by its environment never to ask for the network; into a run of its own as well."""
    wandb = pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True, x_disable_meta=True, disable_code=True)
    with wandb.init(project="covary", dir=str(tmp_path), settings=quiet) as mine:
        assert mine.settings._offline
        trackers.to_wandb(run)  # into the active one
        assert wandb.run is mine
        found = trackers.metrics(run)
        assert {name: mine.summary[name] for name in found} == pytest.approx(found)
        for name, value in trackers.parameters(run).items():
            assert mine.config[name] == value
    file = next(tmp_path.rglob("run-*.wandb"))
    wanted = ("covary/flag_rate", "report.json", f"covary-{run.name}")
    for _ in range(100):  # wandb goes on writing for a moment
        if all(name.encode() in file.read_bytes() for name in wanted):
            return
        time.sleep(0.1)
    pytest.fail(f"{[name for name in wanted if name.encode() not in file.read_bytes()]} not in {file.name}")


def test_no_run_is_told(tmp_path):
    with pytest.raises(CovaryError, match=r"no results\.csv"):
        trackers.metrics(tmp_path)
