"""Every command as people type it: what it prints, what it writes, how it ends."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import tiny
from covary.cli import main as cli
from covary.detector import Detector
from covary.features.observables import OBSERVABLES
from covary.models.spaces import SPACES
from covary.runs import scan as scanning
from covary.runs.folder.write import COLUMNS
from covary.scoring.couplings import COUPLINGS
from covary.scoring.scores import SCORES
from covary.settings import ESTIMATORS
from covary.storage import folders

X, Y, TRUTH = tiny.inputs()
COMMANDS = ["demo", "check", "fit", "score", "cost", "scan", "report", "inspect", "verify", "sign", "keygen",
            "compare", "gate", "mechanisms", "serve", "audit", "doctor", "init", "trust", "clean", "export",
            "guard"]  # fmt: skip
SUMMARY = ["n", "n_flagged", "fpr_target", "p_min", "n_reference", "n_fit", "n_calibration", "seconds"]
FIGURES = ["auroc", "auroc_masked", "tpr_at_1", "tpr_at_5", "fpr", "der", "der_masked", "der_ceiling"]


@pytest.fixture
def network(tiny_files):
    return ["--model", "tiny:network", "--weights", tiny_files / "weights.safetensors"]


@pytest.fixture
def usual(network, tiny_files):
    return [*network, "--trusted", tiny_files / "trusted.npz", "--inputs", tiny_files / "inputs.npz"]


@pytest.fixture(scope="module")
def run_folder(tiny_files, tmp_path_factory):
    """A RUN; not to be changed."""
    plan = scanning.ScanPlan.checked(
        model="tiny:network", weights=str(tiny_files / "weights.safetensors"), trusted=str(tiny_files / "trusted.npz"),
        inputs=str(tiny_files / "inputs.npz"), target=3, settings={},
    )  # fmt: skip
    run = tmp_path_factory.mktemp("runs") / "run"
    scanning.scan(plan, run)
    return run


def table(run):
    with open(run / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Results -------------------------------------------------------------------------------------------------------------


def test_scan_writes_a_run(run_cli, usual, tmp_path):
    code, out, err = run_cli("scan", *usual, "--out", tmp_path / "run", "--target", 3)
    assert (code, err) == (0, "")
    assert re.match(r"\d+ of 160 inputs flagged at a false-alarm rate of 1 %\.", out)
    files = {"results.csv", "summary.json", "run.json", "report.json", "report.html", "cards.json", "receipt.json",
             "receipt.sha256"}  # fmt: skip
    assert {entry.name for entry in (tmp_path / "run").iterdir()} == files
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(SUMMARY + FIGURES) <= set(summary)
    assert all(summary[name] is not None for name in SUMMARY + FIGURES)
    rows = table(tmp_path / "run")
    assert ",".join(list(rows[0])[:8]) == "id,score,p_value,flagged,predicted,functional,latent,confidence"
    assert list(rows[0])[: len(COLUMNS)] == COLUMNS
    assert [row["id"] for row in rows] == [f"input-{i}" for i in range(len(X))]
    assert sum(row["flagged"] == "true" for row in rows) == summary["n_flagged"]
    p = np.array([float(row["p_value"]) for row in rows])
    assert ((p <= summary["fpr_in_force"]) == [row["flagged"] == "true" for row in rows]).all()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(record["fingerprints"]) == {"network", "trusted", "inputs", "results"}
    assert {"config", "versions", "seed", "roles", "started", "plan"} <= set(record)


def test_a_scan_judges_its_pile_together_unless_told_otherwise(run_cli, usual, run_folder, tmp_path):
    assert run_cli("scan", *usual, "--out", tmp_path / "alone", "--alone", "--target", 3)[0] == 0
    assert table(tmp_path / "alone") == table(run_folder)
    assert run_cli("scan", *usual, "--out", tmp_path / "together", "--fdr", 0.1)[0] == 0
    config = json.loads((tmp_path / "together" / "run.json").read_text())["config"]
    assert config["together"] is True
    assert config["extractor"]["evidence"] == "thorough"
    assert {"pile", "pile functional", "pile latent", "pile features"} <= set(table(tmp_path / "together")[0])
    again = run_cli("scan", "--replay", tmp_path / "together", "--out", tmp_path / "again", "--trust-code")
    assert again[0] == 0
    code, _, err = run_cli("scan", *usual, "--out", tmp_path / "no", "--together", "--offline")
    assert (code, "leave --offline away" in err) == (2, True)


def test_json_alone_on_stdout(run_cli, usual, network, tiny_files, tmp_path):
    code, out, err = run_cli("scan", *usual, "--evidence", "fast", "--out", tmp_path / "run", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["n"] == len(X)
    code, out, _ = run_cli("fit", *network, "--trusted", tiny_files / "trusted.npz", "--out", tmp_path / "d", "--json")
    assert json.loads(out)["kind"] == "detector"
    scored = ["--out", tmp_path / "r", "--trust-code", "--together", "--json"]
    code, out, _ = run_cli("score", tmp_path / "d", tiny_files / "inputs.npz", *scored)
    assert json.loads(out)["n"] == len(X)
    assert table(tmp_path / "r") == table(tmp_path / "run")
    code, out, _ = run_cli("check", *usual, "--json")
    assert json.loads(out)["ok"] is True
    code, out, _ = run_cli("inspect", tmp_path / "d", "--json")
    assert json.loads(out)["weights"] == "stored"
    code, out, _ = run_cli("inspect", tmp_path / "run", "--json")
    assert json.loads(out)["kind"] == "run"
    code, out, _ = run_cli("report", tmp_path / "run", "--json")
    assert json.loads(out)["report"] == str(tmp_path / "run" / "report.html")


def test_what_cannot_be_told_is_null(run_cli, network, tiny_files, tmp_path):
    np.savez(tmp_path / "bare.npz", x=X, truth=TRUTH)
    usual = [*network, "--trusted", tiny_files / "trusted.npz", "--inputs", tmp_path / "bare.npz"]
    _, out, _ = run_cli("scan", *usual, "--out", tmp_path / "run", "--json")
    summary = json.loads(out)
    assert summary["auroc"] > 0.9
    assert [name for name in FIGURES if summary[name] is None] == ["auroc_masked", "der", "der_masked", "der_ceiling"]
    np.savez(tmp_path / "bare.npz", x=X)
    _, out, _ = run_cli("scan", *usual, "--out", tmp_path / "run", "--json")
    assert not set(FIGURES) & set(json.loads(out))


def test_exit_code_1_where_something_is_flagged_and_that_is_asked_for(run_cli, usual, saved_folder, tmp_path):
    assert run_cli("scan", *usual, "--out", tmp_path / "a", "--fail-on-flag")[0] == 1
    np.savez(tmp_path / "clean.npz", x=X[:3])
    scored = ["score", "--trust-code", saved_folder, tmp_path / "clean.npz", "--out", tmp_path / "b", "--fail-on-flag"]
    flagged = Detector.load(saved_folder, trust_code=True).score(X[:3]).flagged.any()
    assert not flagged
    assert run_cli(*scored)[0] == 0


def test_fdr_decides_what_is_flagged(run_cli, usual, tmp_path):
    _, out, _ = run_cli("scan", *usual, "--out", tmp_path / "run", "--fdr", 0.2, "--json")
    summary = json.loads(out)
    p = np.array([float(row["p_value"]) for row in table(tmp_path / "run")])
    sizes = [i for i in range(1, len(p) + 1) if np.sort(p)[i - 1] <= 0.2 * i / len(p)]
    assert summary["n_flagged"] == (p <= np.sort(p)[max(sizes) - 1]).sum() > 0
    assert summary["fdr"] == 0.2
    assert any("Benjamini-Hochberg at rate 0.2 over 160 inputs" in s for s in summary["statements"])


def test_folders_of_images_and_a_table_of_truth(run_cli, network, tmp_path):
    x, y = tiny.trusted()
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        folder = tmp_path / "trusted" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    (tmp_path / "pile").mkdir()
    for i, image in enumerate(X):
        Image.fromarray(image).save(tmp_path / "pile" / f"{i:04}.png")
    lines = [f"{i:04}.png,{value}\n" for i, value in enumerate(TRUTH)]
    (tmp_path / "truth.csv").write_text("id,truth\n" + "".join(reversed(lines)))
    data = ["--trusted", tmp_path / "trusted", "--inputs", tmp_path / "pile", "--truth", tmp_path / "truth.csv"]
    code, out, _ = run_cli("scan", *network, *data, "--out", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(out)["auroc"] > 0.9
    assert [int(row["truth"]) for row in table(tmp_path / "run")] == TRUTH.tolist()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["class_names"] == [str(i) for i in range(10)]


def test_a_dataset_by_name_a_calibration_set_and_truth_in_an_array_of_another_name(run_cli, network, tmp_path):
    x, y = tiny.trusted()
    np.savez(tmp_path / "calibration.npz", x=x[200:], y=y[200:])
    np.savez(tmp_path / "inputs.npz", x=X, y=Y, odd=TRUTH)
    code, out, _ = run_cli(
        "scan", *network, "--trusted", "tiny:dataset", "--calibration", tmp_path / "calibration.npz",
        "--inputs", tmp_path / "inputs.npz", "--truth", "odd", "--target", "all-to-all", "--out", tmp_path / "run",
        "--json",
    )  # fmt: skip
    summary = json.loads(out)
    assert code == 0
    assert summary["n_calibration"] == len(x) - 200
    assert summary["n_anomalous"] == tiny.ODD


def test_without_weights_the_network_is_named_when_scoring(run_cli, network, tiny_files, tmp_path):
    trusted = ["--trusted", tiny_files / "trusted.npz"]
    assert run_cli("fit", *network, *trusted, "--out", tmp_path / "d", "--no-weights")[0] == 0
    score = ["score", "--trust-code", tmp_path / "d", tiny_files / "inputs.npz", "--out", tmp_path / "run"]
    code, _, err = run_cli(*score)
    assert code == 2
    assert re.search(r"network has fingerprint \w{16}; expected \w{16}, the one the detector was fitted on", err)
    assert run_cli(*score, *network)[0] == 0


def test_replay_gives_the_same_verdicts_from_anywhere(run_cli, network, tiny_files, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("trusted.npz", "inputs.npz"):
        os.link(tiny_files / name, tmp_path / "here" / name)
    monkeypatch.chdir(tmp_path / "here")
    assert run_cli("scan", *network, "--trusted", "trusted.npz", "--inputs", "inputs.npz", "--out", "run")[0] == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, _ = run_cli("scan", "--trust-code", "--replay", "../here/run", "--out", "again", "--json")
    assert json.loads(out)["replay"] == {"identical": True, "changed": {}}
    assert code == 0
    again = (tmp_path / "elsewhere" / "again" / "results.csv").read_bytes()
    assert again == (tmp_path / "here" / "run" / "results.csv").read_bytes()
    os.unlink(tmp_path / "here" / "inputs.npz")
    np.savez(tmp_path / "here" / "inputs.npz", x=X[::-1], y=Y[::-1], truth=TRUTH[::-1])
    code, out, _ = run_cli("scan", "--replay", tmp_path / "here" / "run", "--trust-code", "--json")
    assert code == 1
    assert set(json.loads(out)["replay"]["changed"]) == {"inputs", "results"}
    assert (tmp_path / "here" / "run-replay" / "report.html").is_file()


def test_a_sampled_scan_tells_of_its_draws_and_is_replayed(run_cli, usual, network, tiny_files, tmp_path):
    options = ["--estimator", "gaussian", "--draws", "8", "--sigma", "0.05", "--batch-size", "256"]
    code, out, _ = run_cli("scan", *usual, *options, "--out", tmp_path / "run", "--json")
    summary = json.loads(out)
    assert code == 0
    assert summary["score"] == "class-max"
    assert summary["sampling"]["draws"] == 8
    assert summary["sampling"]["settings"] == {"sigma": 0.05}
    assert any(statement.startswith("Sampling: ") for statement in summary["statements"])
    help_of = json.loads((tmp_path / "run" / "report.json").read_text())["sampling"]
    assert len(help_of["sample_traces"]) == 4
    assert "Draws of the weights" in (tmp_path / "run" / "report.html").read_text()
    code, out, _ = run_cli("scan", "--replay", tmp_path / "run", "--trust-code", "--out", tmp_path / "again", "--json")
    assert json.loads(out)["replay"] == {"identical": True, "changed": {}}
    x, y = tiny.trusted()
    np.savez(tmp_path / "trusted.npz", x=x[:340], y=y[:340])
    np.savez(tmp_path / "sampling.npz", x=x[340:], y=y[340:])
    chain = ["--estimator", "sgld", "--draws", "6", "--burn-in", "2", "--thinning", "1", "--chains", "2",
             "--constants", "nbeta=10", "--half-draws", "--sampling", tmp_path / "sampling.npz"]  # fmt: skip
    code, _, err = run_cli("fit", *network, "--trusted", tmp_path / "trusted.npz", *chain, "--out", tmp_path / "d")
    assert code == 0, err
    scored = ["--out", tmp_path / "r", "--trust-code", "--json"]
    code, out, _ = run_cli("score", tmp_path / "d", tiny_files / "inputs.npz", *scored)
    summary = json.loads(out)
    assert code == 0
    assert (summary["n_sampling"], summary["sampling"]["draws"], summary["sampling"]["chains"]) == (80, 12, 2)
    assert summary["sampling"]["bank"]["precision"] == "float16"
    assert summary["sampling"]["settings"]["nbeta"] == 10


def test_report_and_inspect_in_words(run_cli, run_folder, saved_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_bytes()
    (tmp_path / "run" / "report.html").unlink()
    code, out, _ = run_cli("report", tmp_path / "run")
    assert (code, out.strip()) == (0, str(tmp_path / "run" / "report.html"))
    assert (tmp_path / "run" / "report.html").read_bytes() == page
    code, out, _ = run_cli("inspect", saved_folder)
    assert code == 0
    assert re.search(r"^weights +stored", out, re.M)
    assert re.search(r"^settings\.score +combined", out, re.M)
    code, out, _ = run_cli("inspect", tmp_path / "run")
    assert re.search(r"^n +160", out, re.M)


def test_check_says_what_it_found(run_cli, usual, network, tiny_files):
    code, out, _ = run_cli("check", *usual)
    assert code == 0
    assert "Accuracy: 9" in out
    wrong = ["--mean", "0.5", "--std", "0.001"]
    code, out, _ = run_cli("check", *network, "--trusted", tiny_files / "trusted.npz", *wrong)
    assert "warning" in out


# Help ----------------------------------------------------------------------------------------------------------------


def test_help_of_everything_with_examples(run_cli):
    code, out, _ = run_cli("--help")
    assert code == 0
    for command in COMMANDS:
        assert re.search(rf"│ {command}\b", out)
        code, text, _ = run_cli(command, "--help")
        assert code == 0
        assert "Example" in text
        assert f"covary {command} " in text
        assert "--json" in text
    assert {command.name or command.callback.__name__ for command in cli.app.registered_commands} == set(COMMANDS)


def test_help_names_what_the_tables_hold(run_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    _, text, _ = run_cli("scan", "--help")

    def help_of(option):
        return re.search(rf"│ --{option} .*", text)[0]

    for option, names in (
        ("score", SCORES), ("coupling", COUPLINGS), ("observable", OBSERVABLES), ("space", SPACES),
        ("estimator", ESTIMATORS),
    ):  # fmt: skip
        for name in names:
            assert re.search(rf"\b{name}\b", help_of(option)), (option, name)


def test_version(run_cli):
    assert re.fullmatch(r"covary \d+\.\d+\.\d+\n", run_cli("--version")[1])


# Bad input -----------------------------------------------------------------------------------------------------------


def bad_files(folder):
    x, y = tiny.trusted()
    np.savez(folder / "empty.npz", x=x[:0], y=y[:0])
    np.savez(folder / "few.npz", x=x[:12], y=y[:12])
    np.savez(folder / "label.npz", x=x, y=np.where(y == 3, 12, y))
    floats = (x[:, None] / 255).astype(np.float32)
    floats[7, 0, 1, 1] = np.nan
    np.savez(folder / "nan.npz", x=floats, y=y)
    np.savez(folder / "nan-inputs.npz", x=floats[:20])
    np.savez(folder / "colour.npz", x=np.repeat(x[..., None], 3, -1), y=y)
    np.savez(folder / "no-x.npz", pictures=x)
    np.savez(folder / "objects.npz", x=np.array([{}, []], object))
    np.savez(folder / "label-inputs.npz", x=X, y=np.where(Y == 3, 12, Y))
    full = (folder / "few.npz").read_bytes()
    (folder / "cut.npz").write_bytes(full[: len(full) // 2])
    (folder / "torn.pt").write_bytes(b"PK\x03\x04 not a zip")
    (folder / "torn.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
    (folder / "words.csv").write_text("id,truth\n1,maybe\n")
    (folder / "flat").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")


BAD = {
    "empty trusted": (["--trusted", "empty.npz"], "empty"),
    "few trusted": (["--trusted", "few.npz"], "The trusted set has 12 inputs, and a detector takes at least 20"),
    "label out of range": (["--trusted", "label.npz"], "Label 12 of input"),
    "NaN": (["--trusted", "nan.npz"], "holds NaN or infinity"),
    "NaN inputs": (["--inputs", "nan-inputs.npz"], "holds NaN or infinity"),
    "wrong shape": (["--trusted", "colour.npz", "--inputs", "colour.npz"], "Layer `0` takes 1 channel, and inputs"),
    "wrong shape of trusted": (["--trusted", "colour.npz"], "Inputs are 1x8x8 float32, trusted inputs 3x8x8"),
    "wrong shape of inputs": (["--inputs", "colour.npz"], "3x8x8"),
    "label of inputs": (["--inputs", "label-inputs.npz"], "Label 12 of input"),
    "missing file": (["--trusted", "nothing.npz"], "nothing at nothing.npz"),
    "missing inputs": (["--inputs", "nothing.npz"], "nothing at nothing.npz"),
    "broken npz": (["--trusted", "cut.npz"], "cut.npz cannot be read as .npz"),
    "no x": (["--inputs", "no-x.npz"], "has no array 'x'"),
    "objects": (["--inputs", "objects.npz"], "holds Python objects"),
    "empty folder": (["--inputs", "flat"], "no images in flat"),
    "no weights": (["--weights", "nothing.pt"], "no weights file at nothing.pt"),
    "torn weights": (["--weights", "torn.pt"], "torn.pt"),
    "torn safetensors": (["--weights", "torn.safetensors"], "cannot be read as safetensors"),
    "no factory": (["--model", "tiny:nothing"], "tiny has no 'nothing'"),
    "no module": (["--model", "nothing:at_all"], "no Python module 'nothing'"),
    "no name": (["--model", "resnet"], "expected package.module:attribute"),
    "no estimator": (["--estimator", "nope"], "unknown estimator 'nope'; expected one of: first-order, gaussian"),
    "draws for nothing": (["--draws", "9"], "draws says nothing to the estimator first-order"),
    "few draws": (["--estimator", "gaussian", "--draws", "3"], "draws is 3; expected a number greater than or equal"),
    "constants": (["--constants", "nbeta=much"], "--constants is 'nbeta=much'; expected names with numbers"),
    "unknown constant": (["--estimator", "sgld", "--constants", "beta=1"], "unknown setting of sgld 'beta'"),
    "sampling for nothing": (["--sampling", "few.npz"], "a sampling set for the estimator first-order"),
    "few to sample with": (["--estimator", "paper", "--sampling", "few.npz"], "the sampling set has 12 inputs"),
    "no score": (["--score", "nope"], "unknown score 'nope'; expected one of: mean, class-max"),
    "no coupling": (["--coupling", "nope"], "unknown coupling 'nope'"),
    "no observable": (["--observable", "nope"], "unknown observable 'nope'; expected one of: margin, nll"),
    "no space": (["--space", "nope"], "unknown parameter space 'nope'"),
    "empty space": (["--space", "pattern:*attention*"], "selects nothing"),
    "fpr 0": (["--fpr", "0"], "fpr is 0.0; expected a number greater than 0"),
    "fpr 1.5": (["--fpr", "1.5"], "fpr is 1.5; expected a number less than 1"),
    "fpr of text": (["--fpr", "small"], "string as a number"),
    "fdr 2": (["--fdr", "2"], "fdr is 2.0; expected a number less than 1"),
    "amp": (["--amp", "int4"], "amp is 'int4'; expected 'bf16' or 'fp16'"),
    "device": (["--device", "toaster"], "device 'toaster' cannot be used"),
    "batch size": (["--batch-size", "0"], "greater than or equal to 1"),
    "mean": (["--mean", "a,b"], "--mean is 'a,b'; expected numbers separated by commas"),
    "std": (["--std", "0"], "std is [0.0]; expected positive numbers"),
    "channels of mean": (["--mean", "1,2,3"], "3 numbers for mean"),
    "target": (["--target", "cat"], "--target is 'cat'; expected a class number or all-to-all"),
    "target out of range": (["--target", "10"], "--target is 10; expected a class from 0 to 9"),
    "truth": (["--truth", "nothing"], "nothing"),
    "truth in words": (["--truth", "words.csv"], "column 'truth' of words.csv"),
    "transform": (["--transform", "tiny:nothing"], "tiny has no 'nothing'"),
    "out taken": (["--out", "full"], "holds 'notes.txt', which is not part of a RUN"),
    "out is a file": (["--out", "few.npz"], "few.npz is a file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(case, run_cli, network, tiny_files, tmp_path, monkeypatch):
    bad_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(entry.name for entry in tmp_path.iterdir())
    arguments, words = BAD[case]
    options = {"--model": "tiny:network", "--weights": tiny_files / "weights.safetensors", "--out": "run",
               "--trusted": tiny_files / "trusted.npz", "--inputs": tiny_files / "inputs.npz"}  # fmt: skip
    options |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    code, out, err = run_cli("scan", *(part for pair in options.items() for part in pair), "--json")
    assert code == 2
    assert out == ""
    assert words in " ".join(err.split())
    assert "Traceback" not in err
    if not err.startswith("Usage"):
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before


def test_bad_input_to_the_other_commands(run_cli, saved_folder, tiny_files, network, tmp_path, monkeypatch):
    bad_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    score = ["score", "--trust-code", saved_folder, "--out", "run"]
    for arguments, words in (
        (["inspect", "nothing"], "nothing is no detector, RUN, pile or export"),
        (["report", "nothing"], "no results.csv in nothing"),
        (["score", "nothing", "few.npz", "--out", "run"], "no folder nothing"),
        ([*score, "colour.npz"], "holds inputs of shape (3, 8, 8); expected (1, 8, 8)"),
        ([*score, "nan-inputs.npz"], "holds NaN or infinity"),
        ([*score, "label-inputs.npz"], "labels of label-inputs.npz run from 0 to 12; expected 0 to 9"),
        ([*score, "few.npz", "--fdr", "2"], "fdr is 2.0; expected a number less than 1"),
        ([*score, "few.npz", "--target", "77"], "--target is 77"),
        ([*score, "few.npz", "--out", saved_folder], "which is not part of a RUN"),
        (["scan", "--replay", "nothing"], "nothing has no run.json"),
        (["scan", "--model", "tiny:network"], "--trusted, --inputs, --out missing"),
        (["fit", *network, "--trusted", "few.npz", "--out", "d"], "has 12 inputs"),
        (["fit", *network, "--trusted", tiny_files / "trusted.npz", "--out", "full"], "holds 'notes.txt'"),
        (["demo", "--out", "full"], "holds 'notes.txt'"),
        (["demo", "--seed", "-1"], "seed is -1; expected a number greater than or equal to 0"),
    ):
        code, out, err = run_cli(*arguments)
        assert (code, out) == (2, ""), arguments
        assert words in " ".join(err.split()), arguments
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("file", ["results.csv", "run.json", "summary.json", "report.json"])
def test_a_damaged_run(file, run_cli, run_folder, tmp_path):
    run = shutil.copytree(run_folder, tmp_path / "run")
    full = (run / file).read_bytes()
    (run / file).write_bytes(full[: len(full) // 2])
    help_of = {command[0]: run_cli(*command, run) for command in (["inspect"], ["report"])}
    if file == "run.json":
        help_of["scan"] = run_cli("scan", "--replay", run, "--trust-code")
        assert help_of["scan"][0] == 2
    assert help_of["inspect"][0] == 2
    assert help_of["report"][0] == 2 or file == "results.csv"
    for code, _, err in help_of.values():
        assert err.startswith("error: " if code else "warning: ")


@pytest.mark.parametrize("where", ["write_json", "digest_file", "results"])
def test_a_full_disk_leaves_no_run(where, run_cli, usual, tmp_path, monkeypatch):
    from covary.runs.folder import write as running

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "write_json":
        monkeypatch.setattr(folders, "write_json", full)
    elif where == "digest_file":
        monkeypatch.setattr(running, "digest_file", full)
    else:
        monkeypatch.setattr(running, "_results", full)
    code, out, err = run_cli("scan", *usual, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "cannot be written (No space left on device); free some space" in " ".join(err.split())
    assert list(tmp_path.iterdir()) == []


def test_interrupted(run_cli, usual, tmp_path, monkeypatch):
    from covary.runs.folder import write as running

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "_results", stop)
    code, _, err = run_cli("scan", *usual, "--out", tmp_path / "run")
    assert code == 130
    assert "nothing half-written" in err
    assert list(tmp_path.iterdir()) == []


# Exit codes -----------------------------------------------------------------------------------------------------------


def crash(*_):
    raise RuntimeError("a wheel came off")


def test_a_failure_of_our_own_is_three_and_says_where_only_when_asked(run_cli, monkeypatch, tmp_path):
    monkeypatch.setattr("covary.runs.scan.describe", crash)
    code, out, err = run_cli("inspect", tmp_path)
    assert (code, out) == (3, "")
    assert err.splitlines() == ["error: covary itself failed with RuntimeError: a wheel came off; -v shows where"]
    code, out, err = run_cli("inspect", tmp_path, "-v")
    assert (code, out) == (3, "")
    assert "in crash" in err
    assert err.splitlines()[-1] == "error: covary itself failed with RuntimeError: a wheel came off"


def test_every_command_can_be_asked_for_more_and_for_less(run_cli):
    for command in COMMANDS:
        text = run_cli(command, "--help")[1]
        assert "--verbose" in text
        assert "--quiet" in text
