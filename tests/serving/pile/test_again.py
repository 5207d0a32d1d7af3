"""What can be done with a finished pile: every command that takes a RUN, and another look at what it flagged."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import pile_cases
import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.objects import NotTrusted
from covary.serving.pile import again
from covary.serving.pile.score import score_pile
from pile_cases import SIZES

pytest.importorskip("pyarrow", reason="the extra `ray` is not installed")



@pytest.fixture(scope="module")
def home(saved_folder, tmp_path_factory) -> Path:
    """A detector, a pile of it called `pile`, and a RUN of the same inputs called `run`; not to be changed."""
    from covary.runs import scan as scanning

    home = tmp_path_factory.mktemp("again")
    shutil.copytree(saved_folder, home / "detector")
    data = pile_cases.write_npz(home)
    score_pile(home / "detector", data, home / "pile", **SIZES)
    scanning.score(home / "detector", data, home / "run", trust_code=True, batch_size=16)
    return home


@pytest.fixture
def pile(home, tmp_path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(home / "pile", tmp_path / "pile"))


def table(run: Path) -> list[dict[str, str]]:
    with open(run / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_pile_is_inspected_verified_and_gated(home, run_cli):
    code, out, _ = run_cli("inspect", home / "pile", "--json")
    printed = json.loads(out)
    assert (code, printed["kind"], printed["n"], printed["receipt"]) == (0, "pile", 160, "intact")
    assert run_cli("verify", home / "pile")[0] == 0
    assert run_cli("verify", home / "pile", "--sources")[0] == 0
    assert run_cli("gate", home / "pile", "--max-flag-rate", 0.9)[0] == 0
    assert run_cli("gate", home / "pile", "--max-flagged", 0)[0] == 1
    assert run_cli("gate", home / "pile", "--max-flagged", 160, "--against", home / "pile")[0] == 0


def test_a_pile_compares_with_a_run_of_the_same_inputs(home, run_cli):
    code, out, _ = run_cli("compare", home / "run", home / "pile", "--by-id", "--json")
    found = json.loads(out)
    assert (code, found["matched"], found["receipts"]) == (0, 160, ["intact", "intact"])
    assert found["flips"] == {"newly_flagged": 0, "no_longer_flagged": 0, "predictions_changed": 0, "inputs": []}
    assert not {entry["name"] for entry in found["differs"]["fingerprints"]} & {"network", "trusted"}
    code, out, _ = run_cli("compare", home / "pile", home / "pile", "--json")
    assert (code, json.loads(out)["paired"]) == (0, True)


def test_a_report_of_a_pile_is_part_of_it(pile, home, run_cli):
    assert run_cli("report", pile)[0] == 0
    assert "001.png" in (pile / "report.html").read_text()
    assert run_cli("verify", pile)[0] == 0
    summary = score_pile(home / "detector", str(home / "pile.npz"), pile, **SIZES)
    assert summary["resumed_partitions"] == 5
    assert not (pile / "report.html").exists()  # of the flags before, perhaps


def test_what_a_pile_flagged_is_looked_at_again(home, run_cli, tmp_path):
    flagged = {row["id"]: row for row in table(home / "run") if row["flagged"] == "true"}
    out = tmp_path / "out"
    arguments = ["score", home / "detector", "--flagged-of", home / "pile", "--out", out, "--batch-size", 16]
    code, _, err = run_cli(*arguments)
    assert (code, "wants to run code" in err) == (2, True)
    assert run_cli(*arguments, "--trust-code")[0] == 0
    rows = table(out)
    assert [row["id"] for row in rows] == list(flagged)
    assert all(row["p_value"] == flagged[row["id"]]["p_value"] for row in rows)
    assert all(row["flagged"] == "true" for row in rows)
    assert len(json.loads((out / "report.json").read_text())["flagged"]) == min(60, len(rows))
    code, _, err = run_cli("mechanisms", out, "--trust-code")
    assert (code, "the RUN is of what" in err.replace("\n", " ")) == (2, True)
    for wrong, said in (
        ([tmp_path / "x.npz"], "one of them"), (["--fdr", 0.1], "chosen by their p-values"),
        (["--flagged-of", tmp_path], "has no readable pile.json"),
    ):  # fmt: skip
        code, _, err = run_cli(*arguments, "--trust-code", *wrong)
        assert (code, said in err.replace("\n", " ")) == (2, True), said


@pytest.mark.parametrize("kind", ["images", "parquet", "jsonl", "tar"])
def test_piles_of_every_kind_are_read_again(kind, home, tmp_path):
    detector = Detector.load(home / "detector", trust_code=True)
    score_pile(home / "detector", pile_cases.WRITERS[kind](tmp_path), tmp_path / "out", **SIZES)
    some, predicted = again.flagged_inputs(tmp_path / "out", detector)
    expected = [row for row in table(home / "run") if row["flagged"] == "true"]
    assert [name.rsplit("/", 1)[-1].removesuffix(".png") for name in some.ids] == [
        row["id"].removesuffix(".png") for row in expected
    ]
    assert predicted.tolist() == [int(row["predicted"]) for row in expected]
    scores = detector.score(some).score
    np.testing.assert_allclose(scores, [float(row["score"]) for row in expected], rtol=1e-4)


def test_mechanisms_of_a_pile_are_those_of_a_run(home, pile, run_cli, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run")
    (code, one, _), (other_code, other, _) = (
        run_cli("mechanisms", folder, "--trust-code", "--json") for folder in (run, pile)
    )
    assert (code, other_code) == (0, 0)
    one, other = json.loads(one), json.loads(other)
    assert other["members"] == one["members"]
    assert other["n_mechanisms"] == one["n_mechanisms"]
    assert run_cli("verify", pile)[0] == 0
    code, _, err = run_cli("mechanisms", pile, "--detector", tmp_path, "--trust-code")
    assert (code, "has no detector.json" in err.replace("\n", " ")) == (2, True)


def test_inputs_and_detectors_that_are_others_now(home, pile, run_cli, tmp_path):
    data = tmp_path / "pile.npz"
    shutil.copy(home / "pile.npz", data)
    score_pile(home / "detector", str(data), tmp_path / "out", **SIZES)
    with np.load(data) as arrays:
        np.savez(data, x=arrays["x"][:100], id=arrays["id"][:100])
    code, out, _ = run_cli("verify", tmp_path / "out", "--sources", "--json")
    assert (code, [d["name"] for d in json.loads(out)["differences"]]) == (1, ["fingerprints.listing"])
    code, _, err = run_cli("mechanisms", tmp_path / "out", "--trust-code")
    assert (code, "is no longer cut as it was" in err.replace("\n", " ")) == (2, True)
    other = np.array([f"other-{i}" for i in range(160)])
    np.savez(data, x=tiny.inputs()[0], id=other)
    with pytest.raises(CovaryError, match=r"gives 'other-\d+' where '\d+\.png' was judged"):
        again.flagged_inputs(tmp_path / "out", Detector.load(home / "detector", trust_code=True))


def test_a_pile_that_names_code_asks_for_consent(pile):
    plan = json.loads((pile / "pile.json").read_text())
    (pile / "pile.json").write_text(json.dumps({**plan, "data": "http.server:test"}))
    with pytest.raises(NotTrusted, match=r"http\.server:test as its inputs"):
        again.score_flagged(Path("nowhere"), str(pile), Path("out"))
    with pytest.raises(NotTrusted, match=r"http\.server:test as its inputs"):
        list(again.pile_source_differences(pile))


@pytest.mark.parametrize("command", ["inspect", "report", "gate", "compare", "mechanisms"])
def test_a_pile_that_was_changed_or_is_not_finished_is_told(command, pile, home, run_cli):
    more = {"gate": ["--max-flagged", 160], "compare": [home / "run"], "mechanisms": ["--trust-code"]}.get(command, [])
    full = (pile / "part-000001.parquet").read_bytes()
    (pile / "part-000001.parquet").write_bytes(full[:-9] + bytes([full[-9] ^ 1]) + full[-8:])
    code, out, err = run_cli(command, pile, *more)
    assert (code, "part-000001.parquet" in out + err) == (2, True)
    (pile / "part-000001.parquet").write_bytes(full)
    for name in ("summary.json", "receipt.json", "receipt.sha256"):
        (pile / name).unlink()
    code, out, err = run_cli(command, pile, *more)
    assert code == 2
    assert err.count("\n") >= 1
