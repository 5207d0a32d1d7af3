"""The report as a file: what it says, what it escapes, and what it survives. The browser has a test of its own."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covary.errors import CovaryError
from covary.runs.report import charts, words, write_report
from covary.runs.report.axis import Axis, axis_for
from covary.runs.report.page import as_json
from covary.runs.report.panels import image
from covary.runs.report.run_folder import number, read_run
from fake_run import LAYERS, write_fake_run
from pages import HOSTILE, Page


def make(folder: Path, **options: Any) -> Page:
    return Page(write_report(write_fake_run(folder, **{"n": 200, **options})))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return make(tmp_path_factory.mktemp("run"), n=1600)


def test_answer_comes_first_with_rate_and_what_chance_would_give(page: Page) -> None:
    assert "788 of 1,600 inputs flagged at a false-alarm rate of 1 %" in page.text
    assert "about 16 would be flagged by chance; there are 788." in page.text
    assert page.text.index("788 of 1,600") < page.text.index("Each histogram")


def test_one_file_that_asks_the_network_for_nothing(page: Page) -> None:
    addresses = [a[key] for _, a in page.elements for key in ("src", "href", "action", "data", "srcset") if key in a]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "url(" not in page.raw[0][1], "a style sheet that loads something"
    assert "@import" not in page.raw[0][1]


def test_policy_admits_exactly_the_style_and_script_of_the_page(page: Page) -> None:
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    (style, css), (_, _), (script, js) = page.raw
    assert (style, script) == ("style", "script")
    for directive, text in (("style-src", css), ("script-src", js)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy, f"{directive} does not match: the browser would drop it"
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not [a for _, a in page.elements if "style" in a], "the policy forbids style attributes"


def test_what_holds_the_threshold_is_shown(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", n=60)
    record = json.loads((run / "report.json").read_text())
    record["threshold_held_by"] = [{"id": f"{HOSTILE[0]}-trusted", "score": 4.25, "thumbnail": None}]
    (run / "report.json").write_text(json.dumps(record))
    page = Page(write_report(run))
    assert "What holds the threshold" in page.text
    assert f"{HOSTILE[0]}-trusted" in page.text, "escaped, and whole"
    assert "4.25" in page.text
    assert "What holds the threshold" not in make(tmp_path / "before").text


def test_a_run_tells_its_own_evidence_parts(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", n=60)
    record = json.loads((run / "run.json").read_text())
    record["parts"] = [{"name": "latent", "title": "Hidden", "source": "the states", "layered": True}]
    (run / "run.json").write_text(json.dumps(record))
    page = Page(write_report(run))
    assert "Hidden evidence: the states" in page.text
    assert "Functional evidence" not in page.text
    assert "Functional evidence: the gradient" in make(tmp_path / "before").text, "of before parts were recorded"


@pytest.mark.parametrize("truth", [True, False])
def test_hostile_strings_stay_text(tmp_path: Path, truth: bool) -> None:
    run = write_fake_run(tmp_path / "run", n=60, ids=HOSTILE, flag="all", truth=truth, text=True)
    report = json.loads((run / "report.json").read_text())
    evil = HOSTILE[1]
    for entry in report["flagged"]:
        entry["text"] = evil
        entry["raised_by"] = HOSTILE[2]
        entry["explained_by"][0] |= {"id": HOSTILE[2], "thumbnail": "data:image/svg+xml;base64,PHN2Zy8+"}
    report["flagged"][0]["thumbnail"] = "javascript:alert(5)"
    report["flagged"][1]["thumbnail"] = 'data:image/png;base64,AAAA" onerror="alert(6)'
    report["layers"] = [evil] * len(LAYERS)
    report["diagnostics"] = [{"level": evil, "title": evil, "text": evil, "change": HOSTILE[2]}]
    settings = json.loads((run / "run.json").read_text())
    settings |= {"class_names": [evil] * 10, "config": {evil: {evil: HOSTILE[2]}}, "started": evil}
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"statements": [evil], "calibration": evil}
    for name, value in (("report", report), ("run", settings), ("summary", summary)):
        (run / f"{name}.json").write_text(json.dumps(value))
    page = Page(write_report(run))
    assert len(page.all("script")) == 2, "a string opened or closed a script element"
    assert len(page.all("style")) == 1
    assert not [a for _, a in page.elements if any(key.startswith("on") for key in a)]
    assert all(re.fullmatch(r"data:image/png;base64,[\w+/=]+", a["src"]) for a in page.all("img"))
    assert "8641969" not in page.text, "a string was read as a template"
    for name in HOSTILE[:6]:
        assert name in page.data["columns"]["id"]
    assert evil in page.text


@pytest.mark.parametrize(
    "value", ["data:image/svg+xml;base64,AAAA", "https://x.org/a.png", "data:image/png;base64,A\n", 7, None]
)
def test_only_raster_data_uris_are_pictures(value: Any) -> None:
    assert image(value) is None


def test_json_cannot_leave_its_element() -> None:
    text = str(as_json({"a": "</script><!-- & >", "b": "\u2028"}))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!-- & >", "b": "\u2028"}


def test_none_flagged_all_flagged_no_truth(tmp_path: Path) -> None:
    none = make(tmp_path / "none", flag="none", truth=False)
    assert "None of 200 inputs flagged" in none.text
    assert "Nothing was flagged; these inputs passed" in none.text
    assert "Where the flags fall" not in none.text
    assert "Quality" not in none.text
    every = make(tmp_path / "all", flag="all", truth=False, pictures=False)
    assert "All 200 inputs flagged" in every.text
    assert "check that inputs and trusted data were prepared alike" in every.text
    assert not every.all("img")
    text = make(tmp_path / "text", pictures=False, text=True)
    assert "A triumph: funny, warm and short." in text.text


def test_prompt_and_answer_stand_beside_the_nearest_trusted_ones_token_by_token(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", n=40, flag="all", text=True)
    report = json.loads((run / "report.json").read_text())
    entry = report["flagged"][0]
    odd = {"text": "<b>wolf", "unexplained": 3.5, "margin": -1.0, "marked": True}
    entry |= {"text": "sort <b>wolf", "answer": "bite", "tokens": [{"text": "bite", "unexplained": 0.1, "margin": 2.0}]}
    entry["prompt_tokens"] = [{"text": "sort ", "unexplained": None, "margin": 1.0, "marked": False}, odd]
    entry["explained_by"] = [{"id": "near-1", "weight": 0.5, "cosine": 0.4, "text": "sort lamb\n→ bleat"}]
    (run / "report.json").write_text(json.dumps(report))
    write_report(run)
    html, page = (run / "report.html").read_text(), Page(run / "report.html")
    assert "The prompt, its least explained tokens marked" in page.text
    assert "The answer, its least explained tokens marked" in page.text
    assert '<mark title="unexplained 3.50, margin −1.00">&lt;b&gt;wolf</mark>' in html
    assert "Beside the trusted text that comes nearest" in page.text
    for cell in ("sort &lt;b&gt;wolf", "sort lamb", "bite", "bleat"):
        assert f'<td dir="auto">{cell}</td>' in html


def test_a_number_of_flags_that_chance_can_give_is_said_to_mean_nothing(tmp_path: Path) -> None:
    page = make(tmp_path, n=1000, anomalous=0.0, truth=False, seed=3)
    assert re.search(r"about 10 would be flagged by chance: their number alone says nothing", page.text)


def test_rates_in_force(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path, n=200)
    summary = json.loads((run / "summary.json").read_text())
    for change, said in (
        ({"fpr_in_force": 0.02}, "at a false-alarm rate of 2 %"),
        ({"fpr_in_force": None, "p_min": 0.04}, "at a false-alarm rate of 4 %"),
        ({"fdr": 0.05}, "at a false-discovery rate of 5 %"),
    ):
        (run / "summary.json").write_text(json.dumps(summary | change))
        assert said in Page(write_report(run)).text
    assert "1 % false alarms: " in (run / "report.html").read_text().replace("\u00a0", " "), "the line decides nothing"
    (run / "summary.json").write_text(json.dumps(summary))
    for config in ({"per_class": True}, {"settings": {"per_class": True}}):
        (run / "run.json").write_text(json.dumps({"config": config}))
        assert "pooled threshold" in write_report(run).read_text()


def test_results_alone_are_enough(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("id,score\na,1.5\nb,nan\nc,\nd,inf\n")
    page = Page(write_report(tmp_path))
    assert "None of 4 inputs flagged" in page.text
    assert page.data["columns"]["score"] == [1.5, None, None, None]
    assert page.data["columns"]["id"] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("junk", [None, 3, "x", [None, 3, {}], {"a": None}, [[1, 2, 3]], [{"id": None, "layers": [1]}]])
def test_any_key_may_be_null_or_strange(tmp_path: Path, junk: Any) -> None:
    run = write_fake_run(tmp_path, n=60)
    for name in ("report", "summary", "run"):
        value = json.loads((run / f"{name}.json").read_text())
        (run / f"{name}.json").write_text(json.dumps(dict.fromkeys(value, junk)))
    assert " of 60 inputs flagged" in Page(write_report(run)).text


def test_no_inputs(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("id,score,p_value,flagged\n")
    assert "No inputs were scored" in Page(write_report(tmp_path)).text


def test_missing_or_broken_files_give_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CovaryError, match=r"no results.csv in .*; expected a folder written by `covary scan`"):
        write_report(tmp_path)
    run = write_fake_run(tmp_path, n=30)
    (run / "summary.json").write_text("{")
    with pytest.raises(CovaryError, match=r"summary.json is not readable JSON"):
        write_report(run)
    (run / "summary.json").write_text("[]")
    with pytest.raises(CovaryError, match=r"summary.json holds a list"):
        write_report(run)
    (run / "results.csv").write_text("name,score\na,1\n")
    with pytest.raises(CovaryError, match=r"has no column 'id'"):
        write_report(run)
    (run / "results.csv").write_text("id,score\na,1\nb\n")
    with pytest.raises(CovaryError, match=r"row 2 of .* has 1 cells"):
        write_report(run)
    (run / "results.csv").write_bytes(b"id,score\n\xff\xfe,1\n")
    with pytest.raises(CovaryError, match=r"is not readable CSV"):
        write_report(run)


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_fake_run(tmp_path, n=30)
    path = write_report(run)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CovaryError, match="No space left on device"):
        write_report(run)
    assert path.read_bytes() == before
    assert not list(run.glob("*.part")), "half a report was left behind"


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path, n=100)
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_a_lone_surrogate_in_json_is_survived(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path, n=30)
    (run / "run.json").write_text('{"config": {"name": "\\ud800"}}')
    assert write_report(run).stat().st_size > 0


def test_a_large_run_is_cut_to_its_highest_scores_and_says_so(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).permutation(10_050) / 7.0
    with (tmp_path / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "score"], *([f"i{k}", f"{score}"] for k, score in enumerate(scores))])
    page = Page(write_report(tmp_path))
    assert "The 10,000 highest scores of 10,050 inputs are in this page" in page.text
    rows = page.data["columns"]["row"]
    assert len(rows) == 10_000
    slow = sorted(range(10_050), key=lambda k: -scores[k])[:10_000]
    assert rows == [k + 1 for k in slow], "rows are numbered from 1 in input order, highest score first"


def test_figures_where_truth_is_known(page: Page) -> None:
    assert "TPR at 1 % FPR" in page.text
    assert "Its ceiling here is 0.9900." in page.text
    assert "Expected by chance: 0 % to 2.63 %." in page.text
    assert "functional 0.9" in page.text


def test_where_the_flags_fall(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path, n=300)
    results = read_run(run).results
    dogs = [i for i in range(300) if results.numbers["predicted"][i] == 5]
    flagged = sum(bool(results.flagged[i]) for i in dogs)
    assert f"dog {flagged} of {len(dogs)}" in Page(write_report(run)).text


def test_the_report_needs_no_torch() -> None:
    code = "import sys, covary.runs.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (words.percent, 0.01, "1 %"), (words.percent, 1.0, "100 %"), (words.percent, 0.99999, "> 99.99 %"),
        (words.percent, 0.0, "0 %"), (words.percent, 0.00001, "< 0.01 %"), (words.percent, 0.1, "10 %"),
        (words.whole_percent, 0.996, "> 99 %"), (words.whole_percent, 0.004, "< 1 %"),
        (words.whole_percent, 0.5, "50 %"),
        (words.quality, 0.99999, "> 0.9999"), (words.quality, 1.0, "1.0000"), (words.quality, None, "–"),
        (words.signed, -0.001, "0.00"), (words.layer, "11", "layer 11"),
        (words.layer, "conv1", "conv1"), (words.signed, -1.234, "−1.23"),
        (words.signed, 12345.6, "12,346"), (words.count, 1600, "1,600"),
        (words.p_value, 0.00208, "0.0021"), (words.p_value, 0.00000123, "1.2e-6"),
        (words.duration, 4.26, "4.3 s"), (words.duration, 59.6, "1 min 00 s"), (words.duration, 7500, "2 h 05 min"),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(function: Any, value: Any, text: str) -> None:
    assert function(value).replace("\u00a0", " ") == text


@pytest.mark.parametrize("value", [None, "x", "nan", "inf", float("nan"), [], {}, "", 10**400])
def test_what_is_no_finite_number_is_none(value: Any) -> None:
    assert number(value) is None


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-1e29, 1e29), min_size=1, max_size=30),
    st.lists(st.floats(-10, 10), min_size=2, max_size=30),
    st.floats(0, 1),
)
def test_axes_are_monotone_and_hold_every_value(values: list[float], typical: list[float], at: float) -> None:
    axis = axis_for(np.array(values + typical), np.array(typical))
    positions = [axis(value) for value in sorted(values + typical)]
    assert positions == sorted(positions)
    assert axis.low <= min(values + typical) <= max(values + typical) <= axis.high
    assert abs(axis(axis.inverse(at)) - at) < 1e-6
    ticks = axis.ticks()
    assert all(axis.low - 1e-6 * abs(axis.low) <= tick <= axis.high + 1e-6 * abs(axis.high) for tick in ticks)
    assert all(b > a for a, b in pairwise(ticks))


def test_no_bar_straddles_the_threshold() -> None:
    threshold = 3.337
    scores = np.append(np.linspace(0, 10, 501), threshold)
    drawing = str(charts.ridges([("a", "b", scores, scores > threshold)], Axis(0.0, 10.0), threshold, "here"))
    bars = {kind: re.findall(r"M([\d.]+) \d+V[\d.]+H([\d.]+)V", re.search(rf'class="{kind}" d="([^"]*)"', drawing)[1])  # type: ignore[index]
            for kind in ("calm", "flagged")}  # fmt: skip
    at = 100 * threshold
    assert max(float(right) for _, right in bars["calm"]) == pytest.approx(at, abs=0.06)
    assert float(bars["flagged"][-1][1]) == 1000
    over = [(float(left), float(right)) for left, right in bars["flagged"]]
    assert all(left >= at - 0.06 for left, _ in over), "an orange bar left of the threshold"


def test_layers_outside_the_trusted_range_are_counted_like_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    values = [float(v) for v in rng.normal(0, 2, 40)]
    ranges = [[-1.0, 0.0, 1.0] if i % 5 else None for i in range(40)]
    outside = 0
    for value, triple in zip(values, ranges, strict=True):
        if triple is not None and (value < triple[0] or value > triple[2]):
            outside += 1
    drawing = str(charts.layer_profile(values, ranges, Axis(-8.0, 8.0), 100, "functional"))
    assert f"{outside} of 40 layers outside" in drawing
    assert drawing.count("h0") == 40
    assert re.search(r'class="dot out" d="([^"]*)"', drawing)[1].count("M") == outside  # type: ignore[index]


def test_roc_draws_the_rate_axis_logarithmically_down_to_the_smallest_rate() -> None:
    drawing = str(charts.roc([("masked", [(0.0, 0.2), (0.01, 0.5), (1.0, 1.0)])]))
    path = re.search(r'class="curve masked" d="([^"]*)"', drawing)[1]  # type: ignore[index]
    assert path == "M0 192.0H0.0V120.0H1000.0V0.0H1000"
