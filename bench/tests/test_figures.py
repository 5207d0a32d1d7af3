"""Figures of a cell and the record of a table, by hand."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from covary.errors import CovaryError
from covary_bench import plots
from covary_bench.baselines.images import BASELINES
from covary_bench.cell import Cell
from covary_bench.figures import best_der, bootstrap, figures
from covary_bench.outputs import as_csv, as_markdown, write_outputs
from covary_bench.page import page
from covary_bench.prepared import Inputs
from covary_bench.records import read_record, rounded
from covary_bench.scoring import Scored
from covary_bench.summary import by_case, by_distance, means, ranks, record, wins
from covary_bench.table import TABLES, from_toml, read, table


def inputs(kind: str = "backdoor") -> Inputs:
    """Six clean inputs, one of them wrong, and four triggered ones, one of which misses the target 0."""
    truth = np.array([0] * 6 + [1] * 4)
    y = np.array([0, 0, 1, 1, 2, 2, 1, 1, 2, 2])
    predicted = np.array([0, 0, 1, 1, 2, 0, 0, 0, 0, 2])
    targets = np.where(truth == 1, 0, -1)
    return Inputs(truth, y, targets, np.where(truth == 1, "triggered", "clean"), predicted, kind)


SCORES = np.array([0.0, 1.0, 2.0, 3.0, 9.0, 8.0, 7.0, 8.5, 10.0, -1.0])
P = np.where(SCORES >= 7, 0.01, 0.6)


def test_masking():
    np.testing.assert_array_equal(inputs().masked, [1, 1, 1, 1, 1, 0, 1, 1, 1, 0])
    adversarial = replace(inputs(), targets=np.full(10, -1))
    np.testing.assert_array_equal(adversarial.masked[6:], [True, True, True, False])
    foreign = replace(inputs(), targets=np.full(10, -1), y=np.where(inputs().truth == 1, -1, inputs().y))
    assert foreign.masked[6:].all()


def test_figures_by_hand():
    found = figures(Scored(SCORES, P, 0.25), inputs(), 0.05)
    masked = found["masked"]
    assert (masked["n_clean"], masked["n_anomalous"]) == (5, 3)
    assert masked["auroc"] == pytest.approx(13 / 15)  # of 15 pairs 9.0 beats 7.0 and 8.5
    assert (masked["fpr"], masked["tpr"]) == (0.2, 1.0)
    assert masked["der_calibrated"] == pytest.approx(0.9)
    assert masked["der_best"] == pytest.approx(0.9)
    assert masked["tpr_at_5"] == pytest.approx(1 / 3)
    same = found["same_class"]  # clean inputs answered 0, the wrong one too
    assert (same["n_clean"], same["n_anomalous"]) == (3, 3)
    assert same["fpr"] == pytest.approx(1 / 3)
    assert found["end_to_end"]["n_anomalous"] == 4
    accuracy, success = 5 / 6, 3 / 4
    assert found["der"]["calibrated"] == pytest.approx((success * 1.0 - accuracy * 0.2 + 1) / 2)
    assert found["der"]["ceiling"] == pytest.approx((success + 1) / 2)
    assert found["der"]["best"] == pytest.approx((success * 1.0 - accuracy * 0.2 + 1) / 2)
    assert found["seconds_a_query"] == 0.25
    assert found["roc"][-1] == 1.0


def test_best_der_by_trying_every_threshold():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 60)
    scores = np.round(rng.standard_normal(60) + truth, 1)
    tried = []
    for threshold in [*scores, np.inf]:
        flagged = scores >= threshold
        tried.append((0.9 * flagged[truth == 1].mean() - 0.8 * flagged[truth == 0].mean() + 1) / 2)
    assert best_der(scores, truth, 0.8, 0.9) == pytest.approx(max(tried))
    assert best_der(-np.arange(4.0), np.array([0, 0, 1, 1])) == 0.5
    assert best_der(scores, np.zeros(60, int)) is None


def test_bootstrap_holds_the_value_and_narrows():
    rng = np.random.default_rng(1)
    widths = []
    for n in (50, 800):
        truth = np.repeat([0, 1], n)
        interval = bootstrap(rng.standard_normal(2 * n) + truth, truth)
        assert interval is not None
        low, high = interval
        assert low < 0.76 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert bootstrap(np.ones(3), np.zeros(3, int)) is None


def cell(auroc: float, der: float, success: float = 1.0, **baselines: float) -> dict:
    view = {"auroc": auroc, "der_calibrated": der, "der_best": der, "tpr_at_1": 0.5, "tpr_at_5": 0.5,
            "auroc_interval": [0.1, 0.9], "n_clean": 1, "n_anomalous": 1, "tpr": 1.0, "fpr": 0.0}  # fmt: skip

    def detector(value: float) -> dict:
        own = {**view, "auroc": value}
        return {"masked": own, "end_to_end": own, "same_class": None, "der": None, "seconds_a_query": 0.1,
                "roc": [0.0] * 17 + [1.0]}  # fmt: skip

    made = {name.replace("_", " "): detector(value) for name, value in baselines.items()}
    return {"victim": {"attack_success": success}, "detectors": {"covary alone": detector(auroc), **made}}


def test_missing_and_failed_cells_count_a_half():
    cells = {"a/x/0": cell(0.9, 0.8, energy=0.5), "b/x/0": cell(0.99, 0.99, success=0.3), "c/x/0": {"missing": "gone"}}
    found = means(cells, "covary alone")
    assert found["mean_auroc_masked"] == pytest.approx((0.9 + 0.5 + 0.5) / 3)
    assert found["mean_der_calibrated"] == pytest.approx((0.8 + 0.5 + 0.5) / 3)
    assert found["measured"]["mean_auroc_masked"] == pytest.approx(0.9)
    low, high = found["bootstrap"]
    assert 0.5 <= low <= found["mean_der_calibrated"] <= high <= 0.8 + 1e-9
    assert means({"c/x/0": {"missing": "gone"}}, "covary alone")["mean_auroc_masked"] is None


def test_tuning_cells_are_averaged_apart():
    plain = from_toml("vision", "small", {**read("vision"), "tuning": ["a/x/0"]})
    cells = {"a/x/0": cell(1.0, 1.0, energy=0.2), "b/x/0": cell(0.8, 0.7, energy=0.9)}
    made = record(plain, cells, {})
    assert made["mean_auroc_masked"] == pytest.approx(0.8)
    assert made["tuning"]["covary alone"]["mean_auroc_masked"] == 1.0
    assert made["baselines"]["energy"]["mean_auroc_masked"] == pytest.approx(0.9)
    assert made["wins"]["energy"] == [0, 0, 1]
    failed = record(plain, {**cells, "c/x/0": cell(0.9, 0.9, success=0.3, energy=0.1)}, {})
    assert failed["wins"]["energy"] == [0, 0, 1], "an attack that failed is nobody's win"
    assert {"mean_der_calibrated", "mean_der_best", "mean_auroc_masked", "mean_auroc_all", "cells"} <= set(made)
    assert {"mean_der_calibrated", "mean_auroc_all"} <= set(made["baselines"]["energy"])


def test_a_baseline_on_some_cells_is_compared_on_those():
    cells = {"a/x/0": cell(1.0, 1.0, energy=0.2), "b/x/0": cell(0.8, 0.7)}
    made = record(from_toml("vision", "small", {**read("vision"), "tuning": []}), cells, {})
    assert made["baselines"]["energy"]["cells"] == 1
    assert made["baselines"]["energy"]["ours_on_its_cells"]["mean_auroc_masked"] == 1.0


def test_seeds_share_an_interval():
    cells = {"a/x/0": cell(0.8, 0.8), "a/x/1": cell(0.9, 0.9), "b/x/0": cell(0.7, 0.7)}
    found = by_case(cells, "covary alone")
    assert found["a/x"]["seeds"] == 2
    assert found["a/x"]["auroc_masked"] == pytest.approx(0.85)
    assert found["a/x"]["auroc_masked_half_width"] == pytest.approx(12.706 * 0.05, rel=1e-3)
    assert "auroc_masked_half_width" not in found["b/x"]


def test_wins_and_ranks():
    cells = {f"{i}/x/0": cell(0.9, 0.9, energy=0.8, max_softmax=0.9) for i in range(4)}
    assert wins(cells, ["energy", "max softmax"]) == {"energy": [4, 0, 0], "max softmax": [0, 4, 0]}
    found = ranks(cells, ["covary alone", "energy", "max softmax"])
    assert found["mean_ranks"] == {"covary alone": 1.5, "energy": 3.0, "max softmax": 1.5}
    assert found["critical_difference"] == pytest.approx(2.343 * np.sqrt(12 / 24), rel=1e-3)


def test_ranks_leave_out_detectors_that_few_cells_have():
    cells = {f"{i}/x/0": cell(0.9, 0.9, energy=0.8) for i in range(9)}
    cells["9/x/0"] = cell(0.9, 0.9, energy=0.8, published=0.99)
    cells["c/x/0"] = {"missing": "gone"}
    found = ranks(cells, ["covary alone", "energy", "published", "never run"])
    assert found["mean_ranks"] == {"covary alone": 1.0, "energy": 2.0}
    assert found["cells"] == 10


def test_near_and_far_are_averaged_apart():
    cells = {"a/x/0": cell(0.9, 0.9, energy=0.8), "b/x/0": cell(0.7, 0.7, energy=0.6), "c/x/0": cell(0.99, 0.9)}
    for name, distance in (("a/x/0", "near"), ("b/x/0", "near"), ("c/x/0", "far")):
        cells[name]["distance"] = distance
    found = by_distance({**cells, "d/x/0": {"missing": "gone"}}, ["covary alone", "energy"])
    assert found["near"] == pytest.approx({"cells": 2, "covary alone": 0.8, "energy": 0.7})
    assert found["far"] == pytest.approx({"cells": 1, "covary alone": 0.99})
    made = record(from_toml("ood", "small", read("ood")), cells, {})
    text = as_markdown(made)
    assert "Mean masked AUROC over the 2 near sets: 0.800; best of the others: energy 0.700." in text
    assert "Mean masked AUROC over the 1 far sets: 0.990." in text


def test_same_class_says_nothing_where_every_class_is_wanted():
    own = inputs()
    all_to_all = replace(own, targets=np.where(own.truth == 1, (own.y + 1) % 3, -1))
    every = replace(all_to_all, targets=np.array([-1] * 6 + [0, 1, 2, 0]))
    assert figures(Scored(SCORES, P, 0.0), own, 0.05)["same_class"] is not None
    assert figures(Scored(SCORES, P, 0.0), every, 0.05)["same_class"] is None


def test_plots_and_page_compare_like_with_like(monkeypatch):
    """Tuning cells stay out of the drawings, marked ones out of the means that are drawn and shown first."""
    every = {"t/x/0": cell(0.1, 0.1, energy=0.2), "a/x/0": cell(0.9, 0.8, energy=0.7, published=0.95),
             "b/x/0": cell(0.7, 0.6, energy=0.5), "c/x/0": {"missing": "gone"}}  # fmt: skip
    every["t/x/0"]["detectors"]["covary alone"]["roc"] = [1.0] * 18
    made = record(from_toml("vision", "small", {**read("vision"), "tuning": ["t/x/0"]}), every, {})
    drawn = {}

    class Axis:
        def plot(self, x, y, *_, **named):
            drawn[named.get("label", len(drawn))] = (x, y)

        def __getattr__(self, name):
            return lambda *_, **__: None

    class Figure:
        def subplots(self, *_, **__):
            return Axis()

        def set_size_inches(self, *_):
            pass

    assert plots.roc(Figure(), made)
    assert set(drawn) == {"covary alone", "energy"}, "published has one cell of two"
    np.testing.assert_allclose(drawn["covary alone"][1], [0.0] * 17 + [1.0])
    drawn.clear()
    assert plots.cost(Figure(), made)
    assert sorted(round(y, 3) for _, y in drawn.values()) == [0.7, 0.7, 0.8], "der: energy, combined, published"
    html = page(made)
    assert "<td>0.800 (0.700)</td>" in html  # ours: AUROC of a and b; with c, which counts 0.5
    assert "<td>0.950 (0.725)</td>" in html


def test_a_record_says_the_same_from_its_file(tmp_path):
    """What tables, pages and plots use survives writing; curves and what can be told from the rest do not."""
    cells = {"a/x/0": cell(0.91234, 0.8, energy=0.95), "a/x/1": cell(0.8, 0.8, energy=0.7)}
    cells["c/x/0"] = {"missing": "gone"}
    for own in (cells["a/x/0"], cells["a/x/1"]):
        own["detectors"]["covary alone"]["der"] = {"calibrated": 0.7, "best": 0.8, "ceiling": 0.9, "accuracy": 0.85,
                                               "attack_success": 0.8}  # fmt: skip
        own["detectors"]["covary alone"]["same_class"] = {"auroc": 0.77}
        own["about"] = {"device": "a"}
    rates = {"covary alone": {"hard": 0.25, "clean": 0.05, "hard_without": 0.5}, "energy": {"hard": 0.1, "clean": 0.0}}
    cells["a/x/0"]["false_positive_rates"] = rates
    found = from_toml("vision", "small", {**read("vision"), "tuning": []})
    made = record(found, rounded(cells), {})
    again = record(found, read_record(write_outputs(made, tmp_path)[0])["cells"], {})
    assert as_markdown(again) == as_markdown(made)
    assert {k: v for k, v in again.items() if k != "cells"} == {k: v for k, v in made.items() if k != "cells"}
    assert again["cells"]["a/x/0"]["about"] == {"device": "a"}
    assert again["cells"]["a/x/0"]["false_positive_rates"] == rates
    assert "roc" not in again["cells"]["a/x/0"]["detectors"]["covary alone"]
    assert not plots.roc(plots_figure(), again)


def plots_figure():
    from matplotlib.figure import Figure

    return Figure()


def test_files_of_a_record(tmp_path):
    cells = {"a/x/0": cell(0.9, 0.8, energy=0.95), "a/x/1": cell(0.8, 0.8, energy=0.7), "c/x/0": {"missing": "<b>"}}
    made = record(from_toml("vision", "small", {**read("vision"), "tuning": []}), cells, {})
    written = write_outputs(made, tmp_path)
    assert [path.name for path in written] == [f"vision-small.{kind}" for kind in ("json", "csv", "md", "html")]
    kept = read_record(written[0])
    assert kept["cells"]["a/x/0"]["detectors"]["energy"]["masked"]["auroc"] == 0.95
    assert kept["mean_auroc_masked"] == pytest.approx(made["mean_auroc_masked"], abs=1e-4)
    lines = written[0].read_text().splitlines()
    place = kept["detectors"].index("energy")
    assert sum(f"[{place}," in line for line in lines) == 2, "one line a cell"
    assert sum(line.count(f"[{place},") for line in lines) == 2, "one row a cell and detector"
    assert sum("energy" in line for line in lines) == 1, "a name stands once"
    rows = list(csv.DictReader(io.StringIO(as_csv(made))))
    assert len(rows) == 2 * 2 * 2 + 1
    assert rows[-1]["mark"] == "missing: <b>"
    text = as_markdown(made)
    assert "Counted 0.5: c/x/0 (missing)." in text
    plain = made["measured"]["mean_auroc_masked"]
    assert plain > made["mean_auroc_masked"]
    assert f" {made['mean_auroc_masked']:.3f} ({plain:.3f}) |" in text
    assert "| a/x/0 | 0.9000 (0.100 to 0.900) |" in text
    assert "energy 0.950" in text
    assert "on the mean calibrated DER: none. Ahead of covary alone on the mean masked AUROC: none." in text
    ahead = {**made, "mean_auroc_masked": 0.1}
    assert "on the mean masked AUROC: energy (" in as_markdown(ahead)
    page = written[3].read_text()
    assert page.count("<figure>") == 5
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "http" not in page.split("</style>")[1].replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("scale", ["ci", "small", "paper"])
def test_every_table_is_readable_and_names_what_there_is(name, scale):
    found = table(name, scale)
    assert found.cells
    assert len({cell.slug for cell in found.cells}) == len(found.cells)
    assert set(found.size.baselines) <= set(BASELINES)


def test_names_of_cells():
    found = Cell.parse("badnets:ratio=0.01:target=all-to-all/cifar10/3")
    assert (found.what, found.dataset, found.seed) == ("badnets", "cifar10", 3)
    assert found.options == {"ratio": "0.01", "target": "all-to-all"}
    assert str(found) == "badnets:ratio=0.01:target=all-to-all/cifar10/3"
    assert found.number("ratio", 1) == 0.01
    assert found.case == "badnets:ratio=0.01:target=all-to-all/cifar10"
    for wrong in ("badnets", "badnets/cifar10", "badnets/cifar10/x", "../a/b/0", "a/../0"):
        with pytest.raises(CovaryError, match="is not a cell"):
            Cell.parse(wrong)
    with pytest.raises(CovaryError, match="ratio is 'much'"):
        Cell.parse("a:ratio=much/b/0").number("ratio", 1)


def test_wrong_names_are_told():
    with pytest.raises(CovaryError, match="unknown table 'visions'; expected one of: vision"):
        table("visions", "ci")
    with pytest.raises(CovaryError, match="unknown scale 'big'"):
        table("vision", "big")
    with pytest.raises(CovaryError, match="unknown setting of the table mine 'trustd'"):
        from_toml("mine", "ci", {"title": "", "maker": "ood", "ci": {"what": [], "datasets": [], "trustd": 3}})
    with pytest.raises(CovaryError, match=r"has no scale ci; expected a section \[ci\]"):
        from_toml("mine", "ci", {"title": "", "maker": "ood"})


def test_right_answers_calibrate_a_rating_of_their_own():
    """The same figures at p-values by another calibration; nothing where nobody knows which answers are right."""
    right = np.where(SCORES >= 7.5, 0.01, 0.6)  # 7.0 is no longer flagged
    found = figures(Scored(SCORES, P, 0.0, right), inputs(), 0.05)["masked"]
    assert found["der_right"] == pytest.approx((2 / 3 - 1 / 5 + 1) / 2)
    assert found["der_calibrated"] == pytest.approx((3 / 3 - 1 / 5 + 1) / 2)
    assert figures(Scored(SCORES, P, 0.0), inputs(), 0.05)["masked"]["der_right"] is None
    assert "mean_der_right" not in means({"a/x/0": cell(0.9, 0.8)}, "covary alone")
