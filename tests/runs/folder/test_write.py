"""A RUN folder: what is in its files, and that none of it needs all inputs in memory."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

import tiny
from covary.data.source import open_data
from covary.errors import CovaryError
from covary.runs.figures.quality import evaluate
from covary.runs.folder.cards import MAX_CLEAN_CARDS, MAX_FLAGGED_CARDS
from covary.runs.folder.cells import from_cell
from covary.runs.folder.write import COLUMNS, MORE_COLUMNS, write_run
from covary.runs.report import write_report

X, Y, TRUTH = tiny.inputs()


def table(folder):
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(rows, name):
    return np.array([float(row[name]) for row in rows])


@pytest.fixture(scope="module")
def run(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    inputs = open_data((X, Y), truth=TRUTH)
    return folder, write_run(fitted, inputs, folder, target=3, config={"model": "tiny:network"}, plan={"model": "x"})


def test_results_are_the_verdicts_in_input_order(run, fitted):
    folder, _ = run
    rows, verdicts = table(folder), fitted.score(X)
    assert list(rows[0]) == [*COLUMNS, *verdicts.parts, *MORE_COLUMNS, "y", "truth"]
    assert [row["id"] for row in rows] == verdicts.ids
    np.testing.assert_allclose(column(rows, "score"), verdicts.score, rtol=1e-6)
    np.testing.assert_allclose(column(rows, "p_value"), verdicts.p_value, rtol=1e-6)
    for kind, values in verdicts.parts.items():
        np.testing.assert_allclose(column(rows, kind), values, rtol=1e-6, atol=1e-6)
    assert [row["flagged"] == "true" for row in rows] == verdicts.flagged.tolist()
    assert column(rows, "predicted").astype(int).tolist() == verdicts.predicted.tolist()
    assert column(rows, "truth").tolist() == TRUTH.tolist()
    raised = [row["raised_by"] for row in rows]
    assert [bool(kind) for kind in raised] == verdicts.flagged.tolist()
    assert all(kind == own for kind, own in zip(raised, verdicts.raised_by, strict=True) if kind)


def test_evidence_in_results_is_that_of_explain(run, fitted):
    rows = table(run[0])
    for row, evidence in zip(rows[:5], fitted.explain(X[:5]), strict=True):
        assert row["explained_by"].split(";") == [witness.id for witness in evidence.explained_by[:3]]
        assert float(row["unexplained"]) == pytest.approx(evidence.unexplained, rel=1e-6)
        assert row["least_explained_layer"] == evidence.least_explained_layer


def test_the_summary_says_what_metrics_say(run, fitted):
    folder, summary = run
    assert json.loads((folder / "summary.json").read_text()) == summary
    verdicts = fitted.score(X)
    figures = evaluate(
        verdicts.score, verdicts.flagged, TRUTH, verdicts.predicted, Y, 3, 10,
        len(fitted.judge.calibration_scores), fitted.judge.fpr_in_force,
    )  # fmt: skip
    for name, value in figures.items():
        assert summary[name] == pytest.approx(value), name
    assert summary["n"] == len(X)
    assert summary["n_flagged"] == verdicts.flagged.sum()
    roles = fitted.judge.roles
    assert (summary["n_reference"], summary["n_fit"], summary["n_calibration"]) == tuple(map(len, roles.values()))


def test_the_rest_of_the_folder(run, fitted):
    folder, _ = run
    record = json.loads((folder / "run.json").read_text())
    assert record["config"] == {
        "model": "tiny:network", "preprocessing": fitted.preprocessing, **fitted.settings.model_dump(), "fdr": None,
        "target": 3, "offline": False, "together": False,
    }  # fmt: skip
    assert record["plan"] == {"model": "x"}
    assert record["fingerprints"]["network"] == fitted.network.fingerprint
    assert record["roles"] == fitted.judge.roles
    report = json.loads((folder / "report.json").read_text())
    assert len(report["flagged"]) == min(MAX_FLAGGED_CARDS, fitted.score(X).flagged.sum())
    assert len(report["clean_examples"]) == MAX_CLEAN_CARDS
    card = report["flagged"][0]
    assert card["thumbnail"].startswith("data:image/png;base64,")
    assert card["explained_by"][0]["thumbnail"].startswith("data:image/png;base64,")
    for part in ("functional", "latent"):
        assert len(report["layers"][part]) == len(card["layers"][part]) == len(report["layer_range"][part])
    assert set(report["roc"]) == {"all", "masked"}
    scores = [card["score"] for card in report["flagged"]]
    assert scores == sorted(scores, reverse=True)


class Many(torch.utils.data.Dataset):
    """More inputs than are looked at twice; counts how many are alive at once."""

    def __init__(self, n):
        self.n, self.reads = n, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.reads += 1
        return torch.from_numpy(X[i % len(X)]).float().div(255).unsqueeze(0)


def test_a_thousand_inputs_and_a_report(fitted, tmp_path):
    many = Many(1000)
    summary = write_run(fitted, open_data(many), tmp_path / "run", report=write_report)
    assert summary["n"] == len(table(tmp_path / "run")) == 1000
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    # Once judged, once for the fingerprint, and the few that are shown.
    assert many.reads < 2.3 * len(many)


def test_one_input_and_none_flagged(fitted, tmp_path):
    clean = X[:1]
    assert not fitted.score(clean).flagged.any()
    summary = write_run(fitted, open_data(clean), tmp_path / "run", report=write_report)
    assert summary["n_flagged"] == 0


@pytest.mark.parametrize("score", ["class-max", "explained", "profile"])
def test_a_score_without_parts(score, tmp_path):
    detector = tiny.detector(score=score)
    summary = write_run(detector, open_data((X, Y), truth=TRUTH), tmp_path / "run", report=write_report)
    rows = table(tmp_path / "run")
    parts = ["functional"] if score == "profile" else []
    assert list(rows[0])[: 5 + len(parts)] == [*COLUMNS, *parts]
    assert not {"latent", "confidence"} & set(rows[0])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [part["name"] for part in record["parts"]] == parts
    assert summary["auroc"] is not None


def test_labels_and_targets_that_do_not_fit_leave_nothing(fitted, tmp_path):
    wrong = np.where(Y == 3, 11, Y)
    streamed = torch.utils.data.StackDataset(torch.from_numpy(X).float().div(255).unsqueeze(1), torch.from_numpy(wrong))
    for inputs, target, words in (
        ((X, wrong), None, "run from 0 to 11"),
        (streamed, None, "to 11"),
        ((X, Y), 10, "target= is 10"),
    ):
        with pytest.raises(CovaryError, match=words):
            write_run(fitted, open_data(inputs), tmp_path / "run", target=target)
    assert list(tmp_path.iterdir()) == []


def test_ids_of_every_kind_survive(fitted, tmp_path):
    ids = ['comma, "quote"', "line\nbreak", "semi;colon", "größe", "=1+1", "<b>"]
    write_run(fitted, open_data(X[: len(ids)]), tmp_path / "plain")
    np.savez(tmp_path / "inputs.npz", x=X[: len(ids)], id=ids)
    write_run(fitted, open_data(tmp_path / "inputs.npz"), tmp_path / "run", report=write_report)
    assert [from_cell(row["id"]) for row in table(tmp_path / "run")] == ids
    assert column(table(tmp_path / "run"), "score").tolist() == column(table(tmp_path / "plain"), "score").tolist()
