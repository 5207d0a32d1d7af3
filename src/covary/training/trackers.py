"""A RUN in an experiment tracker: its figures as metrics, its settings as parameters, the folder as an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from covary.errors import missing_extra
from covary.runs.report.run_folder import number, read_run, section

# Figures of a summary; those that a RUN does not have are left away.
FIGURES = (
    "n", "n_flagged", "fpr_in_force", "p_min", "n_reference", "n_fit", "n_calibration", "seconds", "auroc",
    "auroc_masked", "tpr", "fpr", "tpr_at_1", "tpr_at_5", "der",
)  # fmt: skip
PREFIX = "covary"
# Trackers refuse longer values.
LONGEST = 250


def metrics(folder: str | Path) -> dict[str, float]:
    """Figures of a RUN by the names they are logged under."""
    summary = read_run(Path(folder)).summary
    found = {name: number(summary.get(name)) for name in FIGURES}
    flagged, n = found["n_flagged"], found["n"]
    found["flag_rate"] = flagged / n if n and flagged is not None else None
    return {f"{PREFIX}/{name}": value for name, value in found.items() if value is not None}


def parameters(folder: str | Path) -> dict[str, str]:
    """Settings and fingerprints of a RUN by the names they are logged under."""
    run = read_run(Path(folder)).run
    flat: dict[str, str] = {}

    def add(prefix: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                add(f"{prefix}/{name}", value)
            elif value is not None:
                flat[f"{prefix}/{name}"] = str(value)[:LONGEST]

    for part in ("config", "fingerprints", "versions"):
        add(PREFIX, section(run, part))
    return flat


def to_mlflow(folder: str | Path, *, artifacts: bool = True) -> str:
    """Logs a RUN into MLflow's active run, or into a new one; returns that run's id.

    Raises:
        CovaryError: no RUN there, or mlflow is not installed.
    """
    try:
        import mlflow
    except ImportError:
        raise missing_extra("mlflow-skinny", "mlflow") from None
    path = Path(folder)
    numbers, texts = metrics(path), parameters(path)
    begun = mlflow.active_run() is None
    active = mlflow.active_run() or mlflow.start_run()
    try:
        mlflow.log_metrics(numbers)
        mlflow.log_params(texts)
        if artifacts:
            mlflow.log_artifacts(str(path), artifact_path=f"{PREFIX}/{path.name}")
    finally:
        if begun:
            mlflow.end_run()
    return active.info.run_id


def to_wandb(folder: str | Path, run: Any = None, *, artifacts: bool = True) -> None:
    """Logs a RUN into a Weights & Biases run, or into the active one; works offline as well.

    Raises:
        CovaryError: no RUN there, or wandb is not installed.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise missing_extra("wandb", "wandb") from None
    path = Path(folder)
    numbers, texts = metrics(path), parameters(path)
    run = (wandb.run or wandb.init()) if run is None else run
    run.config.update(texts, allow_val_change=True)
    run.log(numbers)
    if artifacts:
        kept = wandb.Artifact(f"{PREFIX}-{path.name}", type="covary-run")
        kept.add_dir(str(path))
        run.log_artifact(kept)
