"""What goes to auditors: SARIF, a bill of materials that CycloneDX's own schema accepts, a section of a model card."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from covary.errors import CovaryError
from covary.runs.release.audit import FIGURES, GAPS, bill_of_materials, model_card, write_audit
from covary.runs.release.gate import gate
from covary.runs.release.sarif import FLAGGED, sarif
from covary.scoring.calibration.conformal import rate_interval
from fake_run import sealed, write_fake_run

STRANGE = "a | <b>\n\u202e.png"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A RUN with known truth, and an id that is no file's name."""
    return sealed(write_fake_run(tmp_path_factory.mktemp("runs") / "a run", n=300, ids=[STRANGE]))


@pytest.fixture(scope="module")
def unknown(tmp_path_factory) -> Path:
    """One without truth, of which nothing is flagged."""
    return sealed(write_fake_run(tmp_path_factory.mktemp("runs") / "b", n=60, truth=False, flag="none"))


# SARIF ---------------------------------------------------------------------------------------------------------------


def check_sarif(log: dict) -> None:
    """The rules of SARIF 2.1.0 (sections 3.13 to 3.49) that such a log could break."""
    assert log["version"] == "2.1.0"
    assert log["$schema"].startswith("https://")
    [run] = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    assert all(isinstance(call["executionSuccessful"], bool) for call in run["invocations"])
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"]
        assert result["kind"] in ("pass", "fail", "notApplicable", "review", "open", "informational")
        assert (result["level"] == "none") == (result["kind"] != "fail")
        for location in result["locations"]:
            uri = location["physicalLocation"]["artifactLocation"]["uri"]
            assert uri.isascii()
            assert not set(" <>\\^`{|}\n") & set(uri)


def test_a_broken_rule_is_an_error_and_names_what_stands_out(run):
    found = gate(run, {"max_flag_rate": 0.01, "max_flagged": 300})
    log = sarif(found)
    check_sarif(json.loads(json.dumps(log)))
    results = log["runs"][0]["results"]
    levels = {result["ruleId"]: result["level"] for result in results}
    assert levels["share-of-inputs-flagged"] == "error"
    assert levels["inputs-flagged"] == levels["the-run-is-what-its-receipt-says"] == "none"
    flagged = [result for result in results if result["ruleId"] == FLAGGED]
    assert len(flagged) == 20
    scores = [result["properties"]["score"] for result in flagged]
    assert scores == sorted(scores, reverse=True)
    uri = results[0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert unquote(uri).endswith("a run/results.csv")
    assert log["runs"][0]["invocations"][0]["exitCode"] == 1


def test_a_rule_has_one_name_whatever_its_limit(run):
    names = {sarif(gate(run, {"max_flag_rate": limit}))["runs"][0]["results"][1]["ruleId"] for limit in (0.01, 0.99)}
    assert names == {"share-of-inputs-flagged"}


def test_a_gate_that_passes_has_no_failures_and_the_command_writes_it(unknown, run_cli, tmp_path):
    code, _, errors = run_cli("gate", unknown, "--max-flagged", 0, "--sarif", tmp_path / "out" / "gate.sarif")
    assert code == 0, errors
    log = json.loads((tmp_path / "out" / "gate.sarif").read_text("utf-8"))
    check_sarif(log)
    assert {result["kind"] for result in log["runs"][0]["results"]} == {"pass"}


# Bill of materials ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["run", "unknown"])
def test_cyclonedx_accepts_the_bill(which, request):
    bill = bill_of_materials(request.getfixturevalue(which))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    assert [part["bom-ref"] for part in bill["components"]] == ["detector", "trusted", "inputs", "verdicts"]
    refs = {bill["metadata"]["component"]["bom-ref"], *(part["bom-ref"] for part in bill["components"])}
    named = {ref for entry in bill["dependencies"] for ref in (entry["ref"], *entry.get("dependsOn", []))}
    assert named == refs
    assert bill == bill_of_materials(request.getfixturevalue(which))


def test_the_bill_holds_what_the_run_says(run):
    bill = bill_of_materials(run)
    record, summary = (json.loads((run / name).read_text("utf-8")) for name in ("run.json", "summary.json"))
    network = bill["metadata"]["component"]
    assert network["properties"] == [
        {"name": "covary:fingerprint:tensors:sha256", "value": record["fingerprints"]["network"]}
    ]
    metrics = {entry["type"]: entry for entry in network["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    assert float(metrics["flag rate"]["value"]) == pytest.approx(summary["n_flagged"] / summary["n"], rel=1e-5)
    low, high = rate_interval(summary["fpr_in_force"], summary["n_calibration"])
    interval = metrics["false-alarm rate in force"]["confidenceInterval"]
    assert (float(interval["lowerBound"]), float(interval["upperBound"])) == pytest.approx((low, high), rel=1e-5)
    assert set(FIGURES.values()) - {FIGURES["accuracy"]} <= set(metrics)


def test_a_run_that_was_changed_gets_no_papers(tmp_path):
    folder = sealed(write_fake_run(tmp_path / "c", n=40))
    text = (folder / "results.csv").read_text("utf-8")
    (folder / "results.csv").write_text(text.replace("true", "false"), "utf-8")
    for make in (bill_of_materials, model_card):
        with pytest.raises(CovaryError, match="an intact RUN"):
            make(folder)


# Model card ----------------------------------------------------------------------------------------------------------


def test_a_card_tells_the_interval_and_every_known_gap(run, unknown):
    text = model_card(run)
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    low, high = rate_interval(summary["fpr_in_force"], summary["n_calibration"])
    assert f"between {low:.2%} and {high:.2%}" in text
    assert all(gap in text for gap in GAPS)
    assert f"{summary['n_flagged']:,} (" in text
    assert all(line.count("|") == 3 for line in text.split("\n") if line.startswith("|"))
    assert FIGURES["tpr"] in text
    assert FIGURES["tpr"] not in model_card(unknown)


def test_the_command_writes_both(run, run_cli, tmp_path):
    code, out, _ = run_cli("audit", run, "--bom", tmp_path / "bom.json", "--card", tmp_path / "card.md", "--json")
    assert code == 0
    assert json.loads(out)["written"] == [str(tmp_path / "bom.json"), str(tmp_path / "card.md")]
    assert (tmp_path / "card.md").read_text("utf-8") == model_card(run)
    code, _, errors = run_cli("audit", run)
    assert code == 2
    assert "--bom or --card" in " ".join(errors.split())
    with pytest.raises(CovaryError, match="nothing to write"):
        write_audit(run)
