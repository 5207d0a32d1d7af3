"""Trusted samples dealt anew: the table's own deal gives the table's own figures, other deals others, all resumable."""

from __future__ import annotations

import json

import numpy as np
import pytest

from covary.errors import CovaryError
from covary_bench.baselines.images import BASELINES
from covary_bench.cell import Cell
from covary_bench.prepared import Prepared
from covary_bench.runner import run_table, work_folder
from covary_bench.studies import deals
from covary_bench.table import from_toml, read

NAMES = ["energy", "KNN on features", "functional part"]
HALF = {"what": ["badnets"], "datasets": ["digits"], "trusted": 340, "clean": 60, "anomalous": 60, "baselines": NAMES}
CELL = Cell.parse("badnets/digits/0")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A table with one finished cell, its cache and its record."""
    cache = tmp_path_factory.mktemp("deals")
    found = from_toml("vision", "ci", {**read("vision"), "ci": HALF})
    return found, cache, run_table(found, cache)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    few = {name: BASELINES[name] for name in NAMES}
    monkeypatch.setattr(deals, "cheap", lambda: few)


def test_the_tables_own_deal_gives_its_figures(made):
    found, cache, record = made
    first = deals.deals_of(found, CELL, cache, 1)[0]
    for name in ["covary alone", *NAMES]:
        own = record["cells"][str(CELL)]["detectors"][name]["masked"]
        assert first[name] == pytest.approx({key: own[key] for key in deals.FIGURES}, abs=1e-4), name


def test_deals_change_roles_and_nothing_else(made):
    found, cache, _ = made
    work = work_folder(found, CELL, cache)
    prepared = Prepared(work / "case", work, found.fpr)
    other = prepared.with_split_seed(5)
    assert other.judge.roles != prepared.judge.roles
    assert {n for own in other.judge.roles.values() for n in own} <= set(prepared.trusted.ids)
    assert other.queries is prepared.queries
    assert prepared.seed == 0
    same = prepared.with_split_seed(0).judge
    np.testing.assert_array_equal(same.calibration_scores, prepared.judge.calibration_scores)


def test_a_killed_run_goes_on_with_the_next_deal(made, monkeypatch):
    found, cache, _ = made
    full = deals.deals_of(found, CELL, cache, 3)
    kept = work_folder(found, CELL, cache) / "deals.json"
    kept.write_text(json.dumps({"deals": full[:2]}))
    seeds = []
    real = deals.one_deal
    monkeypatch.setattr(deals, "one_deal", lambda prepared, fpr: seeds.append(prepared.seed) or real(prepared, fpr))
    assert deals.deals_of(found, CELL, cache, 3) == full
    assert seeds == [2]


def figures(value: float) -> dict[str, float]:
    return dict.fromkeys(deals.FIGURES, value)


def test_means_leave_tuning_cells_out_and_count_deals_ahead():
    found = from_toml("vision", "ci", {**read("vision"), "ci": HALF, "tuning": ["wanet/digits/0"]})
    cells = {
        "wanet/digits/0": [{"covary alone": figures(0.1), "energy": figures(0.9)}] * 2,
        "badnets/digits/0": [
            {"covary alone": figures(0.9), "energy": figures(0.8)},
            {"covary alone": figures(0.7), "energy": figures(0.8)},
        ],
    }
    message = deals.record(found, cells)
    assert message["held_out"] == ["badnets/digits/0"]
    assert message["detectors"]["covary alone"]["mean_auroc"] == pytest.approx(0.8)
    assert message["detectors"]["covary alone"]["deal_spread"]["auroc"] == pytest.approx(0.1)
    assert message["detectors"]["energy"]["deals_ahead"]["der_calibrated"] == 1
    assert message["cells"]["badnets/digits/0"]["auroc"] == pytest.approx({"mean": 0.8, "least": 0.7, "largest": 0.9})
    page = deals.as_markdown(message)
    assert "| covary alone | 0.800 (0.100) | 0.800 | 0.8000 | 0.800 |  |" in page
    with pytest.raises(CovaryError, match="held-out"):
        deals.record(found, {"wanet/digits/0": cells["wanet/digits/0"]})


def test_the_command(made, monkeypatch, tmp_path, capsys):
    found, cache, _ = made
    monkeypatch.setattr(deals, "table", lambda name, scale: found)
    seeds = ["vision", "--scale", "ci", "--cache", str(cache), "--out", str(tmp_path)]
    assert deals.main([*seeds, "--deals", "2"]) == 0
    assert json.loads((tmp_path / "vision-ci-deals.json").read_text())["deals"] == 2
    assert (tmp_path / "vision-ci-deals.md").read_text() in capsys.readouterr().out
    failed = {"cell": str(CELL), "victim": {"attack_success": 0.3}, "detectors": {}}
    with monkeypatch.context() as patch:
        patch.setattr(deals, "results", lambda *_: {str(CELL): failed})
        assert deals.main([*seeds, "--deals", "1"]) == 2
    assert "no held-out cell of vision was measured" in capsys.readouterr().err
    assert deals.main([*seeds, "--deals", "0"]) == 2
    assert capsys.readouterr().err == "error: 0 deals; expected at least one\n"
