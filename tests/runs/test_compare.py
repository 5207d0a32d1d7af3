"""What changed between two RUNs, and gates on them, on invented RUN folders."""

from __future__ import annotations

import csv
import itertools
import json
from xml.etree import ElementTree as Xml

import numpy as np
import pytest

from covary.cli.compare import statements, write_page
from covary.errors import CovaryError
from covary.runs.compare import _flat, compare
from covary.runs.release.gate import RULES, gate
from covary.runs.release.junit import junit
from covary.settings import Settings
from covary.storage.receipts import write_receipt
from fake_run import sealed, write_fake_run


def edit(run, change):
    """Changes rows of results.csv and tells the summary of it."""
    with open(run / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        change(i, row)
    with open(run / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"n": len(rows), "n_flagged": sum(row["flagged"] == "true" for row in rows)}
    (run / "summary.json").write_text(json.dumps(summary))
    return run


@pytest.fixture
def runs(tmp_path):
    """The same inputs, twenty more of which are flagged after."""
    before = sealed(edit(write_fake_run(tmp_path / "before", n=400), lambda i, row: None))
    after = write_fake_run(tmp_path / "after", n=400)
    turned = itertools.count()

    def change(i, row):
        if row["flagged"] == "false" and next(turned) < 20:
            row |= {"flagged": "true", "p_value": "0.001", "score": str(float(row["score"]) + 9)}

    return before, sealed(edit(after, change))


def test_verdicts_that_flipped(runs):
    found = compare(*runs)
    assert found["paired"]
    assert found["receipts"] == ["intact", "intact"]
    assert (found["flips"]["newly_flagged"], found["flips"]["no_longer_flagged"]) == (20, 0)
    assert len(found["flips"]["inputs"]) == 20
    assert all(flip["after"]["flagged"] and not flip["before"]["flagged"] for flip in found["flips"]["inputs"])
    assert found["flag_rate"]["difference"] == pytest.approx(20 / 400)
    assert found["flag_rate"]["p_value"] == pytest.approx(2 * 0.5**20)
    assert found["scores"]["measure"] == "score"
    assert found["scores"]["higher_after"] == pytest.approx(0.5 + 10 / 400)
    assert found["differs"] == {"config": [], "versions": [], "fingerprints": []}
    back = compare(runs[1], runs[0])
    assert (back["flips"]["newly_flagged"], back["flips"]["no_longer_flagged"]) == (0, 20)
    assert back["flag_rate"]["interval"] == pytest.approx([-x for x in reversed(found["flag_rate"]["interval"])])
    json.dumps(found, allow_nan=False)


def test_nothing_changed(runs):
    found = compare(runs[0], runs[0])
    assert found["flag_rate"]["p_value"] == found["scores"]["p_value"] == 1.0
    assert found["flips"]["inputs"] == []


def test_other_inputs_are_two_samples_unless_ids_say_otherwise(runs):
    sealed(runs[1], inputs="2" * 64)
    found = compare(*runs)
    assert not found["paired"]
    assert "flips" not in found
    assert found["flag_rate"]["test"] == "Fisher exact"
    assert [entry["name"] for entry in found["differs"]["fingerprints"]] == ["inputs"]
    assert found["scores"]["measure"] == "score"
    edit(runs[1], lambda i, row: row.update(id=f"new-{i}") if i >= 300 else None)
    found = compare(*runs, by_id=True)
    assert found["matched"] == 300
    edit(runs[1], lambda i, row: row.update(id="same"))
    with pytest.raises(CovaryError, match="ids repeat"):
        compare(*runs, by_id=True)
    edit(runs[1], lambda i, row: row.update(id=f"new-{i}"))
    with pytest.raises(CovaryError, match="no id is in both"):
        compare(*runs, by_id=True)


@pytest.mark.parametrize("what", ["network", "trusted", "setting"])
def test_scores_in_other_units_are_not_compared(runs, what):
    message = json.loads((runs[1] / "run.json").read_text())
    if what == "setting":
        message["config"]["space"] = "last-layer"
    (runs[1] / "run.json").write_text(json.dumps(message))
    sealed(runs[1], **({} if what == "setting" else {what: "3" * 64}))
    found = compare(*runs)
    assert found["scores"]["measure"] == "-log10(p_value)"
    assert any("scores have other units" in sentence for sentence in statements(found))
    changed = [entry["name"] for entries in found["differs"].values() for entry in entries]
    assert changed == [{"setting": "space"}.get(what, what)]


def test_a_run_that_was_changed_is_said(runs):
    (runs[0] / "report.json").write_text("{}")
    found = compare(*runs)
    assert found["receipts"][0].startswith("report.json was changed")
    assert any("is not what its receipt says" in sentence for sentence in statements(found))
    (runs[1] / "receipt.json").unlink()
    assert compare(*runs)["receipts"][1] == "none"


def test_what_is_no_run(tmp_path):
    with pytest.raises(CovaryError, match=r"no results\.csv"):
        compare(tmp_path, tmp_path)
    (tmp_path / "results.csv").write_text("id,score\n")
    with pytest.raises(CovaryError, match="no verdicts"):
        compare(tmp_path, tmp_path)
    (tmp_path / "results.csv").write_text("id,score\na,1\nb,nan\n")
    found = compare(tmp_path, tmp_path)
    assert found["n"] == [2, 2]
    write_page(found, tmp_path / "page.html")


def test_the_command_and_its_page(run_cli, runs, tmp_path):
    edit(runs[1], lambda i, row: row.update(id="<script>alert(1)</script>") if row["flagged"] == "true" else None)
    sealed(runs[1])
    code, out, _ = run_cli("compare", *runs, "--out", tmp_path / "page.html")
    assert code == 0
    assert "20 are newly flagged, 0 no longer" in out
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "newly flagged" in page
    code, out, _ = run_cli("compare", *runs, "--json")
    assert json.loads(out)["flips"]["newly_flagged"] == 20


# Gates ---------------------------------------------------------------------------------------------------------------


def passed(found):
    return [rule["passed"] for rule in found["rules"]]


def test_rules(runs):
    share = compare(*runs)["flag_rate"]["values"][0]
    assert passed(gate(runs[0], {"max_flag_rate": share})) == [True, True]
    assert passed(gate(runs[0], {"max_flag_rate": float(np.nextafter(share, 0))})) == [True, False]
    assert passed(gate(runs[0], {"max_flagged": 0, "min_auroc": 0.5})) == [True, False, True]
    with pytest.raises(CovaryError, match="unknown rule 'max_speed'"):
        gate(runs[0], {"max_speed": 1.0})
    bare = write_fake_run(runs[0].parent / "bare", n=50, truth=False)
    with pytest.raises(CovaryError, match="no figure for AUROC"):
        gate(bare, {"min_auroc": 0.5})
    found = gate(bare, {"max_flag_rate": 1})["rules"][0]
    assert found == {"rule": "the RUN is what its receipt says", "passed": False, "found": "no receipt"}


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({}, "no rule to decide by; expected one of max_flag_rate="),
        ({"max_flag_rate": 50}, r"max_flag_rate=50; expected a share from 0 to 1; for 50 % write 0.5"),
        ({"min_auroc": float("nan")}, "min_auroc=nan"),
        ({"max_flagged": -1}, "max_flagged=-1; expected 0 or more"),
    ],
)
def test_a_gate_that_nothing_could_fail_is_refused(runs, limits, said):
    with pytest.raises(CovaryError, match=said):
        gate(runs[0], limits)


@pytest.mark.parametrize("name", ["fpr_in_force", "fdr", "together"])
def test_flags_of_two_rates_are_not_compared(runs, name):
    summary = json.loads((runs[1] / "summary.json").read_text())
    (runs[1] / "summary.json").write_text(json.dumps(summary | {name: 0.3}))
    write_receipt(runs[1])
    with pytest.raises(CovaryError, match="two RUNs flagged by one rule"):
        gate(runs[1], {}, against=runs[0])


def test_no_warnings_needs_a_check(runs):
    summary = json.loads((runs[0] / "summary.json").read_text())
    (runs[0] / "summary.json").write_text(json.dumps(summary | {"checked": False}))
    write_receipt(runs[0])
    with pytest.raises(CovaryError, match="no check was run before"):
        gate(runs[0], {}, no_warnings=True)


def test_more_flags_than_before_fail_fewer_do_not(runs):
    assert not gate(runs[1], {}, against=runs[0])["passed"]
    assert gate(runs[0], {}, against=runs[1])["passed"]
    assert gate(runs[0], {}, against=runs[0])["passed"]


def test_the_command_ends_as_documented(run_cli, runs, tmp_path):
    assert run_cli("gate", runs[0], "--max-flag-rate", 1)[0] == 0
    code, out, _ = run_cli("gate", runs[0], "--max-flagged", 0, "--junit", tmp_path / "sub" / "gate.xml")
    assert code == 1
    assert "failed inputs flagged at most 0" in out
    root = Xml.parse(tmp_path / "sub" / "gate.xml").getroot()
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    assert [case.find("failure") is not None for case in root.iter("testcase")] == [False, True]
    assert "highest scores first" in root.find(".//failure").text
    assert run_cli("gate", tmp_path / "nothing", "--max-flagged", 0)[0] == 2
    assert run_cli("gate", runs[0], "--level", 2)[0] == 2
    for name in set(RULES) - {"min_accuracy"}:
        code, out, _ = run_cli("gate", runs[0], f"--{name.replace('_', '-')}", 0, "--json")
        assert len(json.loads(out)["rules"]) == 2
    assert "no figure for accuracy" in run_cli("gate", runs[0], "--min-accuracy", 0)[2]
    (runs[0] / "summary.json").write_text((runs[0] / "summary.json").read_text() + " ")
    code, out, _ = run_cli("gate", runs[0], "--max-flag-rate", 1)
    assert code == 1
    assert "summary.json was changed" in out


def test_warnings_can_fail(runs):
    summary = json.loads((runs[0] / "summary.json").read_text())
    (runs[0] / "summary.json").write_text(json.dumps(summary | {"warnings": ["Duplicates: 3"], "checked": True}))
    write_receipt(runs[0])
    assert gate(runs[0], {"max_flag_rate": 1})["passed"]
    assert gate(runs[0], {}, no_warnings=True)["rules"][-1]["found"] == "Duplicates: 3"


def test_any_id_makes_xml(runs):
    edit(runs[0], lambda i, row: row.update(id=f"<&\"'\x00\x1b\ud7ff￾ü{i}") if row["flagged"] == "true" else None)
    text = junit(gate(runs[0], {"max_flagged": 0.0}))
    Xml.fromstring(text.encode())
    assert "&lt;&amp;" in text


def test_a_run_of_before_settings_were_a_union_differs_in_nothing_else():
    settings = Settings(preconditioner="diagonal")
    before = {**settings.model_dump(exclude={"extractor"}), "metric": "diagonal", "damping": 0.1, "engine": "hooks",
              "estimator": "first-order", "draws": None, "chains": 1, "constants": {}, "output": None,
              "channels_last": False, "evidence": "fast", "inputs": "a.npz"}  # fmt: skip
    after = {**settings.model_dump(), "inputs": "a.npz"}
    assert _flat(before) == _flat(after)
    assert _flat(after)["preconditioner"] == "diagonal"
