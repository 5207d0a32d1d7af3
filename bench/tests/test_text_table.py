"""The table of language models: a tiny case from nothing by one command, figures by hand, means and what counts."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from covary.detector import Detector
from covary_bench import commands, docs, runner
from covary_bench import table as tables
from covary_bench.baselines.texts import TEXT_BASELINES
from covary_bench.cell import Cell
from covary_bench.records import read_record
from covary_bench.scoring import Scored, ours, scores_path
from covary_bench.table import SCALES, from_toml, read
from covary_bench.texts import page, record, scoring, tiny
from covary_bench.texts.case import TextCase
from covary_bench.texts.cases import CASES
from covary_bench.texts.prepared import PreparedTexts, TextInputs

DOCS = Path(__file__).parents[2] / "docs"
FEW = ["completion NLL", "latent part", "layer fingerprints", "completion text", "gradient norm"]


@pytest.fixture(autouse=True)
def one_split(monkeypatch):
    """120 trusted texts are split as five hundred would be."""
    monkeypatch.setattr("covary.scoring.calibration.splits.LEAST_SPLIT", 30)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with the tiny case, of fewer texts than the table's, and its scores."""
    folder = tmp_path_factory.mktemp("language")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "TRUSTED", 120)
        patch.setattr(tiny, "QUERIES", 30)
        patch.setattr("covary.scoring.calibration.splits.LEAST_SPLIT", 30)
        tiny.make_tiny(folder / "language" / "tiny-s0")
        runner.run_table(small(), folder)
    return folder


def small(**changes):
    return from_toml(
        "language", "ci", {**read("language"), "ci": {**read("language")["ci"], "baselines": FEW, **changes}}
    )


def test_one_command_scores_a_case(cache, tmp_path, run_cli, monkeypatch):
    monkeypatch.setattr(commands, "table", lambda name, scale: small())
    code, out, _ = run_cli("run", "language", "--cache", cache, "--out", tmp_path, "--json")
    assert code == 0
    message = json.loads(out)["language"]
    made = docs.complete(read_record(tmp_path / "language-ci.json"))
    assert message["tiny"]["mean_auroc"] == made["tiny"]["mean"]
    cell = made["cells"]["tiny/words/0"]
    assert cell["judged"] == ["both", "equal length"]
    assert set(cell["detectors"]) == {"covary alone", *FEW}
    assert cell["detectors"]["covary alone"]["auroc"] > 0.9
    assert cell["detectors"]["covary alone"]["calibrated"]["5%"]["false_alarms"] < 0.3
    assert cell["detectors"]["completion text"]["auroc"] > 0.9  # the reply reads like no trusted answer
    for found in cell["detectors"].values():
        assert found["n_clean"] == 30
        assert found["seconds_a_query"] > 0
    low, high = cell["detectors"]["covary alone"]["interval"]
    assert low <= cell["detectors"]["covary alone"]["auroc"] <= high
    text = (tmp_path / "language-ci.md").read_text("utf-8")
    assert "| tiny/words/0 | 30 / " in text
    assert all(f"| {name} |" in text for name in FEW)


def test_ours_is_what_the_detector_says(cache, tmp_path):
    case = cache / "language" / "tiny-s0"
    prepared = PreparedTexts(case, tmp_path / "work")
    text = {"max_new_tokens": tiny.LONGEST, "conformal": "split"}  # as the benchmark's tables
    detector = Detector(case / "model", **text).fit(case / "trusted.jsonl")
    verdicts = detector.score(case / "inputs.jsonl")
    mine = ours(prepared)
    np.testing.assert_allclose(mine.score, verdicts.score, rtol=1e-4)
    np.testing.assert_allclose(mine.p_value, verdicts.p_value, atol=0.011)
    assert prepared.groups == detector.extractor.grouping.name == "label"
    # A forward pass of its own sees what the rows saw.
    known = prepared.material(0, "forward").known
    margins = np.array([np.mean(own - np.log(-np.expm1(own))) for own in known.log_p])
    fold = np.concatenate(prepared.folds()[0][:2])
    np.testing.assert_allclose(margins, prepared.trusted.confidence["margin"][fold], rtol=1e-3, atol=1e-3)
    assert prepared.material(0, "forward").queries.ids[-1] == prepared.queries.ids[-1]


def test_another_case_of_the_same_name_is_scored_anew(cache, tmp_path, monkeypatch):
    found, cell = small(baselines=FEW[:1]), Cell.parse("tiny/words/0")
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    first = runner.run_table(found, tmp_path)
    run_cell = runner.run_cell
    monkeypatch.setattr(runner, "run_cell", pytest.fail)
    runner.run_table(found, tmp_path)  # finished
    message = tmp_path / "language" / "tiny-s0" / "case.json"
    message.write_text(json.dumps({**json.loads(message.read_text()), "clean_accuracy": 0.123}))
    monkeypatch.setattr(runner, "run_cell", run_cell)
    path = scores_path(runner.work_folder(found, cell, tmp_path), FEW[0])
    before = path.stat().st_mtime_ns
    second = runner.run_table(found, tmp_path)
    assert path.stat().st_mtime_ns > before
    cells = [made["cells"]["tiny/words/0"] for made in (first, second)]
    assert cells[0]["detectors"]["covary alone"]["auroc"] == cells[1]["detectors"]["covary alone"]["auroc"]
    assert cells[1]["victim"]["clean_accuracy"] == 0.123


def test_chains_are_run_only_if_asked_for(cache, tmp_path, monkeypatch):
    published = sys.modules["covary_bench.baselines.texts.published"]
    plan = replace(published.PLAN, steps=6, burn_in=2, thinning=1, minibatch=8)
    monkeypatch.setattr(published, "PLAN", plan)
    found = small(baselines=["published (mean Pearson)", "published (max CCC)"])
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    case = tmp_path / "language" / "tiny-s0"
    lines = [json.loads(line) for line in (case / "trusted.jsonl").read_text().splitlines()[:16]]
    clean = [{**line, "id": f"sampling {line['id']}", "completion": "apple bird"} for line in lines]
    (case / "sampling.jsonl").write_text("".join(json.dumps(line) + "\n" for line in clean))
    cell = runner.run_table(found, tmp_path)["cells"]["tiny/words/0"]
    assert set(cell["detectors"]) == {"covary alone"}
    cell = runner.run_table(found, tmp_path, chains=True)["cells"]["tiny/words/0"]
    assert set(cell["detectors"]) == {"covary alone", "published (mean Pearson)", "published (max CCC)"}


def inputs(**counts: int) -> TextInputs:
    kinds = [name.replace("_", "-") for name, n in counts.items() for _ in range(n)]
    return TextInputs(np.array([int(kind.startswith("triggered")) for kind in kinds]), np.array(kinds))


def test_figures_by_hand():
    known = inputs(clean=80, near_miss=20, triggered=30, triggered_2=10, long=20)
    score = np.concatenate([np.arange(100) / 100, np.full(30, 0.985), np.full(10, 0.495), np.full(20, 5.0)])
    p = np.concatenate([np.full(98, 0.5), np.full(2, 0.01), np.full(30, 0.01), np.full(10, 0.05), np.full(20, 0.005)])
    found = scoring.figures(Scored(score, p, 0.5), known)
    assert (found["n_clean"], found["n_anomalous"]) == (100, 40)
    assert found["auroc"] == pytest.approx((30 * 99 + 10 * 50) / 4000)
    assert found["recall_at_1pct_fpr"] == 0.75
    assert found["calibrated"] == {
        "1%": {"recall": 0.75, "false_alarms": 0.02},
        "5%": {"recall": 1.0, "false_alarms": 0.02},
    }
    kinds = found["by_kind"]
    assert kinds["long"] == {"n": 20, "1%": 1.0, "5%": 1.0}
    assert kinds["near-miss"] == {"n": 20, "1%": 0.1, "5%": 0.1}
    assert kinds["triggered"]["auroc"] == pytest.approx(0.99)
    assert kinds["triggered-2"]["auroc"] == pytest.approx(0.5)


def cell(auroc: float, recall: float = 1.0, **victim) -> dict:
    kinds = {"long": {"n": 100, "1%": 0.02, "5%": 0.06}}
    one = {"auroc": auroc, "interval": [auroc - 0.01, auroc],
           "recall_at_1pct_fpr": recall, "recall_at_5pct_fpr": recall,
           "calibrated": {name: {"recall": recall, "false_alarms": 0.01} for name in ("1%", "5%")},
           "by_kind": kinds, "seconds_a_query": 0.1, "n_clean": 9, "n_anomalous": 9}  # fmt: skip
    return {"victim": {"accepted": None, "attempts": [], "marks": [], **victim},
            "detectors": {"covary alone": one, "ConfGuard": {**one, "auroc": auroc / 2}}}  # fmt: skip


def test_means_and_intervals():
    cells = {"contextual/words/0": cell(0.9), "contextual/words/1": cell(1.0, 0.5), "variable/words/0": cell(0.8)}
    made = record.record("Language", "small", {**cells, "quirky/words/0": {"missing": "not run"}}, {})
    own = made["contextual"]
    assert own["mean"] == pytest.approx(0.95)
    assert own["interval"] == [pytest.approx(0.95 - 12.7062 * 0.05, abs=1e-4), 1.0]
    assert own["interval_queries"] == pytest.approx([0.94, 0.95])
    assert own["recall_at_1pct_fpr"] == 0.75
    assert own["baselines"]["ConfGuard"]["mean"] == pytest.approx(0.475)
    assert made["variable"]["interval"] == pytest.approx([0.79, 0.8])
    assert made["missing"] == {"quirky/words/0": "not run"}
    assert "quirky" not in made
    assert made["benign"]["long"]["1%"]["times_nominal"] == pytest.approx(2.0)
    assert made["benign"]["long"]["n"] == 300
    low, high = made["benign"]["long"]["1%"]["interval"]
    assert low < 0.02 < high
    text = page.as_markdown(made)
    assert "quirky/words/0: not run" in text
    assert "**0.9500** (0.75)" in text


def test_cells_of_earlier_defaults_are_no_part_of_means_of_later_ones():
    found = {"n": 20, "kinds": 2, "clusters": 2, "ari": 1.0}
    clusters = {"triggers": 2, "triggered": found, "all_flagged": found}
    later = {**cell(0.9), "judged": ["both", "equal length"], "mechanisms": clusters, "mechanisms_together": clusters}
    later["detectors"]["covary together"] = later["detectors"]["covary alone"]
    made = record.record("", "small", {"variable/words/0": later, "variable/words/1": cell(0.5)}, {})
    assert made["variable"]["cells"] == ["variable/words/0"]
    assert made["variable"]["mean"] == pytest.approx(0.9)
    assert made["variable"]["baselines"]["covary together"]["mean"] == pytest.approx(0.9)
    assert made["benign"]["long"]["n"] == 100
    text = page.as_markdown(made)
    assert "| *defaults of covary* | today's |" in text
    assert "| covary together |" in text
    (line,) = [line for line in page.cells(made).splitlines() if "variable/words/1" in line]
    assert line.endswith("| earlier defaults |")
    assert "| variable/words/0 | together | all flagged | 20 | 2 | 2 | 1.000 |" in text


def test_accepted_attempts_count_or_all_where_none_is():
    some = {"obfuscated/words/0": cell(0.9, accepted=True), "obfuscated/words/1": cell(0.5, accepted=False)}
    made = record.record("", "small", some, {})["obfuscated"]
    assert made["mean"] == 0.9
    assert [victim["counts"] for victim in made["victims"]] == [True, False]
    none = {name: {**own, "victim": {**own["victim"], "accepted": False}} for name, own in some.items()}
    assert record.record("", "small", none, {})["obfuscated"]["mean"] == pytest.approx(0.7)


def test_what_attackers_paid_is_told_attempt_by_attempt():
    attempts = [{"strength": 1.0, "seen": {"nll": 0.9}}, {"strength": 2.0, "accepted": True}]
    made = record.record("", "small", {"adaptive/words/0": cell(0.9, attempts=attempts)}, {})
    assert page.paid(made).splitlines() == [
        "| cell | strength | seen nll | accepted |", "| --- | --- | --- | --- |",
        "| adaptive/words/0 | 1.000 | 0.900 |  |", "| adaptive/words/0 | 2.000 |  | yes |",
    ]  # fmt: skip


@pytest.mark.parametrize("scale", SCALES)
def test_cells_are_of_cases_there_are(scale):
    for one in tables.table("language", scale).cells:
        assert record.group_of(str(one)) in record.GROUPS
    assert {what.group for what in CASES.values()} < set(record.GROUPS)


def test_the_page_names_every_baseline():
    text = (DOCS / "language.md").read_text("utf-8")
    for name in TEXT_BASELINES:
        assert f"| {name} |" in text, name


def test_a_cell_missing_at_first_is_run_once_its_case_is_there(tmp_path):
    found = tables.table("language", "ci")
    cell = found.cells[0]
    case = TextCase(found, cell, tmp_path)
    for folder in (case.work, case.folder):
        folder.mkdir(parents=True)
    (case.work / "result.json").write_text('{"cell": "tiny/words/0", "missing": "no data"}')
    (case.folder / "case.json").write_text("{}")
    assert not runner.finished(found, case, chains=False)
