"""Every command on every kind of detector: it works, or refuses in a sentence that names why."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.features.extractor import EXTRACTORS
from covary.serving.http.settings import ServeSettings
from covary.serving.monitor import Monitor
from covary.settings import OF_EXTRACTOR

KINDS = ("image", "sampled", "table", "text")
FEW_DRAWS = ("--estimator", "gaussian", "--draws", 8, "--sigma", 0.05)


def table_network() -> nn.Module:
    """Three classes of five numbers: `test_every_command:table_network`."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3)).eval()


def _arrays(folder: Path, x: np.ndarray, odd: np.ndarray) -> dict[str, Path]:
    for name, values in (("trusted", x[:60]), ("inputs", np.concatenate([x[60:70], odd[:5]]))):
        np.savez(folder / f"{name}.npz", x=values)
    return {"trusted": folder / "trusted.npz", "inputs": folder / "inputs.npz"}


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory) -> dict[str, Any]:
    """Names of a network and of data, as options, and what only this kind is given."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "text":
        import texts

        def write(name: str, rows: list[dict[str, Any]]) -> Path:
            path = folder / name
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            return path

        model = texts.saved(folder / "model")
        odd = [{**one, "completion": " gold wood eagle now please"} for one in texts.records(4, 9, "odd")]
        inputs = write("i.jsonl", [*texts.records(8, 3, "new"), *odd])
        data = {"trusted": write("t.jsonl", texts.records(40)), "inputs": inputs}
        options: list[Any] = ["--hf", model, "--max-new-tokens", 4]
    elif request.param == "table":
        x = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)
        data, options = _arrays(folder, x, 9 * x), ["--model", "test_every_command:table_network"]
    else:
        x = tiny.trusted()[0]
        data, options = _arrays(folder, x, tiny.odd(x[70:75])), ["--model", "tiny:trained"]
    more = list(FEW_DRAWS) if request.param == "sampled" else []
    return {"kind": request.param, "folder": folder, "options": options, "more": more, **data}


def works(run_cli: Callable[..., tuple[int, str, str]], *arguments: Any, codes: tuple[int, ...] = (0,)) -> Any:
    """What a command prints as JSON."""
    code, out, errors = run_cli(*arguments, "--json")
    assert code in codes, errors
    return json.loads(out)


def last_id(run: Path) -> str:
    with open(run / "results.csv", newline="") as file:
        return list(csv.DictReader(file))[-1]["id"]


def test_from_check_to_gate(case, run_cli):
    folder, inputs = case["folder"], case["inputs"]
    usual = [*case["options"], *case["more"], "--trusted", case["trusted"], "--fpr", 0.1]
    assert works(run_cli, "check", *usual, "--inputs", inputs)["findings"]
    fitted = works(run_cli, "fit", *usual, "--out", folder / "detector")
    assert fitted["kind"] == "detector"
    assert works(run_cli, "inspect", folder / "detector")["trusted"] == 60 - 20 * (case["kind"] == "text")
    scanned = works(run_cli, "scan", *usual, "--inputs", inputs, "--out", folder / "scan", "--alone")
    agreed = ("--trust-code",)
    scored = works(run_cli, "score", folder / "detector", inputs, "--out", folder / "score", *agreed)
    assert (scored["n"], scored["n_flagged"]) == (scanned["n"], scanned["n_flagged"])
    assert (folder / "score" / "results.csv").read_bytes() == (folder / "scan" / "results.csv").read_bytes()
    for made in ("detector", "scan", "score"):
        assert works(run_cli, "verify", folder / made, "--sources", *agreed)["differences"] == [], made
    assert works(run_cli, "report", folder / "score")["report"]
    assert works(run_cli, "compare", folder / "scan", folder / "score")
    works(run_cli, "gate", folder / "scan", "--max-flag-rate", 1, codes=(0, 1))
    if scanned["n_flagged"] >= 2:
        works(run_cli, "mechanisms", folder / "scan", *agreed)
    key = folder / "key.pem"
    works(run_cli, "keygen", key)
    works(run_cli, "sign", folder / "detector", "--key", key)
    assert works(run_cli, "verify", folder / "detector", "--public-key", f"{key}.pub")["signed_by"]
    (folder / "ids.txt").write_text(last_id(folder / "score"))
    more = ("--ids", folder / "ids.txt", "--out", folder / "more", *agreed)
    assert works(run_cli, "trust", folder / "score", *more)["n_added"] == 1
    assert works(run_cli, "scan", "--replay", folder / "scan", *agreed)["replay"]["identical"]


def test_piles_the_monitor_and_the_service_take_it_or_say_why_not(case, run_cli, tmp_path):
    folder = tmp_path / "detector"
    usual = [*case["options"], *case["more"], "--trusted", case["trusted"]]
    works(run_cli, "fit", *usual, "--out", folder)
    pile = ("score", folder, case["inputs"], "--out", tmp_path / "pile", "--partition-size", 8, "--trust-code")
    code, _, errors = run_cli(*pile, "--json")
    detector = Detector.load(folder, trust_code=True)
    settings = ServeSettings(name="tiny")
    if case["kind"] == "text":
        assert code == 2
        assert "a pile of texts in partitions" in " ".join(errors.split())
        with pytest.raises(CovaryError, match="beside a language model"):
            Monitor(detector)
        from covary.serving.http.service import Service

        with pytest.raises(CovaryError, match="beside a language model"):
            Service(detector, settings)
        return
    assert code == 0, errors
    cost = works(run_cli, "cost", "--inputs", 1e6, "--actors", 4, "--measured", tmp_path / "pile")
    assert cost["seconds"] > 0
    batch = next(detector.open(str(case["inputs"])).batches(4)).x
    outputs, verdicts = Monitor(detector)(batch)
    assert len(outputs) == len(verdicts) == 4


def test_every_extractor_has_settings_of_its_own():
    assert set(EXTRACTORS) == set(OF_EXTRACTOR)


def test_a_saved_detector_of_texts_keeps_to_its_place(case, tmp_path):
    """Loading minds `weights` and `public_key` as that of any other detector."""
    if case["kind"] != "text":
        pytest.skip("of texts alone")
    fitted = Detector(case["options"][1], max_new_tokens=4).fit(str(case["trusted"]))
    fitted.save(tmp_path / "detector")
    with pytest.raises(CovaryError, match="weights beside a language model"):
        Detector.load(tmp_path / "detector", weights="w.pt")
    with pytest.raises(CovaryError, match=r"none\.pem"):
        Detector.load(tmp_path / "detector", public_key=tmp_path / "none.pem")
    with pytest.raises(CovaryError, match="pooling cannot change after fitting"):
        Detector.load(tmp_path / "detector", pooling="sum")


def test_a_former_name_of_an_option_works_with_a_note(case, run_cli):
    if case["kind"] != "table":
        pytest.skip("of first-order evidence")
    usual = ("check", *case["options"], "--trusted", case["trusted"], "--json")
    code, out, errors = run_cli(*usual, "--metric", "diagonal")
    assert (code, "--metric is now called --preconditioner" in " ".join(errors.split())) == (0, True), errors
    assert json.loads(out)["findings"]
