"""What a run of the benchmark never loses or mixes up: cells, records, scores, settings, the time of a chain."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest

from covary.errors import CovaryError
from covary_bench import commands, runner, scoring
from covary_bench.baselines.images import BASELINES, Baseline
from covary_bench.cell import Cell
from covary_bench.images import datasets, pack
from covary_bench.images.datasets import Images
from covary_bench.images.makers import MAKERS, checked
from covary_bench.runner import cell_path, run_table
from covary_bench.scoring import rescored, scores_path, stale, with_chain
from covary_bench.table import TABLES, from_toml, read, table

SMALL = {"what": ["badnets"], "datasets": ["digits"], "trusted": 340, "clean": 40, "anomalous": 40,
         "baselines": ["energy", "KNN on features"]}  # fmt: skip
NAME = "badnets/digits/0"
published = importlib.import_module("covary_bench.baselines.images.published")  # its function has the same name


@pytest.fixture(scope="module")
def found():
    return from_toml("vision", "ci", {**read("vision"), "ci": SMALL})


@pytest.fixture(scope="module")
def cache(tmp_path_factory, found):
    """One finished cell."""
    cache = tmp_path_factory.mktemp("kept")
    run_table(found, cache)
    return cache


@pytest.mark.parametrize("name", [name for name in TABLES if name != "language"])
@pytest.mark.parametrize("scale", ["ci", "small", "paper"])
def test_every_cell_of_every_table_is_known(name, scale):
    every = table(name, scale)
    assert [checked(every.maker, cell) for cell in every.cells] == every.cells


@pytest.mark.parametrize(
    ("what", "cell", "message"),
    [
        ("vision", "bandets/digits/0", "unknown name in the cell bandets/digits/0, 'bandets'; expected one of: clean"),
        ("vision", "badnets/digit/0", "unknown victim or public network 'digit'"),
        ("vision", "badnets:raito=0.3/digits/0", "unknown option of the cell badnets:raito=0.3/digits/0, 'raito'"),
        ("vision", "badnets+blended/digits/0", "'badnets+blended'"),
        ("mechanisms", "badnets+blend/digits/0", "'blend'"),
        ("ood", "badnets/digits/0", "unknown name in the cell"),
    ],
)
def test_a_wrong_cell_is_told_and_nothing_written(what, cell, message, tmp_path, run_cli):
    code, _, error = run_cli("run", what, "--cell", cell, "--cache", tmp_path / "c", "--out", tmp_path / "o")
    assert code == 2
    assert message in " ".join(error.split())
    assert not list(tmp_path.iterdir())


def test_an_option_that_a_maker_reads_is_known():
    """Every `cell.options` and `cell.number` names an option of its maker's table, and every option there is read."""
    import inspect
    import re

    from covary_bench.images import ingredients

    def read_options(module) -> set[str]:
        return set(re.findall(r'cell\.(?:options\.get|number)\("(\w+)"', inspect.getsource(module)))

    read = read_options(ingredients)
    assert read, "the pattern finds what a module reads"
    for name, maker in MAKERS.items():
        own = read_options(inspect.getmodule(maker.make))
        assert own <= set(maker.options), name
        read |= own
    assert read == {option for maker in MAKERS.values() for option in maker.options}


def test_a_cell_asked_for_that_cannot_be_made_leaves_the_record(found, cache, tmp_path, run_cli, monkeypatch):
    monkeypatch.setattr(commands, "table", lambda name, scale: found)
    arguments = ["run", "vision", "--cell", NAME, "--cache", cache, "--out", tmp_path]
    assert run_cli(*arguments)[0] == 0
    record = (tmp_path / "vision-ci.json").read_bytes()
    result = cell_path(found, Cell.parse(NAME), cache).read_bytes()

    def broken(*_, **__):
        raise CovaryError("no images at hand")

    monkeypatch.setattr(runner, "run_cell", broken)
    code, _, error = run_cli(*arguments, "--again")
    assert code == 2
    assert f"the cell {NAME} cannot be made: no images at hand" in " ".join(error.split())
    assert (tmp_path / "vision-ci.json").read_bytes() == record
    assert cell_path(found, Cell.parse(NAME), cache).read_bytes() == result


def test_a_device_that_is_not_there_is_told_before_anything_is_lost(found, cache, tmp_path, run_cli, monkeypatch):
    monkeypatch.setattr(commands, "table", lambda name, scale: found)
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    code, _, error = run_cli(
        "run", "vision", "--cell", NAME, "--again", "--device", "kuda", "--cache", cache, "--out", tmp_path
    )
    assert code == 2
    assert "device 'kuda' cannot be used" in error
    assert {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.iterdir())


def test_a_record_of_something_else_is_told(found, cache, tmp_path, run_cli, monkeypatch):
    monkeypatch.setattr(commands, "table", lambda name, scale: found)
    (tmp_path / "vision-ci.json").write_text("[]")
    code, _, error = run_cli("run", "vision", "--cache", cache, "--out", tmp_path)
    assert code == 2
    assert "vision-ci.json" in " ".join(error.split())
    assert (tmp_path / "vision-ci.json").read_text() == "[]"


def test_scoring_anew_keeps_what_takes_hours(found, cache, monkeypatch):
    work = cell_path(found, Cell.parse(NAME), cache).parent
    read_options = []
    monkeypatch.setitem(
        BASELINES, "slow", Baseline(lambda m: read_options.append(1) or np.zeros(len(m.queries)), "chain")
    )
    every = replace(found, size=replace(found.size, baselines=[*SMALL["baselines"], "slow"]))
    run_table(every, cache, only=[NAME], chains=True)
    assert read_options == [1]
    record = run_table(every, cache, only=[NAME], again=True)
    assert read_options == [1]
    assert "slow" in record["cells"][NAME]["detectors"]
    run_table(every, cache, only=[NAME], again=True, chains=True)
    assert read_options == [1, 1]
    assert not (work / "before").exists()
    scores_path(work, "slow").unlink()


def test_a_baseline_left_out_keeps_its_earlier_figures(found, cache, tmp_path, run_cli, monkeypatch):
    monkeypatch.setattr(commands, "table", lambda name, scale: found)
    work = cell_path(found, Cell.parse(NAME), cache).parent
    known = run_table(found, cache, only=[NAME])["cells"]
    known[NAME]["detectors"]["energy"]["masked"]["auroc"] = 0.123
    for path in (scores_path(work, "energy"), work / "result.json"):
        path.unlink()
    again = run_table(found, cache, only=[NAME], skip=["energy"], known=known)["cells"][NAME]["detectors"]
    assert again["energy"]["masked"]["auroc"] == 0.123
    assert again["KNN on features"] == known[NAME]["detectors"]["KNN on features"]
    other = {NAME: {**known[NAME], "victim": {**known[NAME]["victim"], "clean_accuracy": 0.2}}}
    of_another = run_table(found, cache, only=[NAME], skip=["energy"], known=other)
    assert "energy" not in of_another["cells"][NAME]["detectors"], "figures of another victim do not stay"
    whole = run_table(found, cache, only=[NAME])
    assert "energy" in whole["cells"][NAME]["detectors"], "another run asks for it"
    code, _, error = run_cli("run", "vision", "--skip", "enrgy", "--cache", cache, "--out", tmp_path)
    assert code == 2
    assert "unknown baseline to skip 'enrgy'" in error


def test_scores_come_back_when_scoring_anew_fails(tmp_path):
    for name in ("rows.json", "scores/a.npz", "scores/b.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")

    def there():
        return {
            path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*") if path.is_file()
        }

    before = there()
    with rescored(tmp_path, ["a"]) as ended:
        assert there().keys() == {"before/rows.json", "before/scores/a.npz", "scores/b.npz"}
        (tmp_path / "scores/a.npz").write_text("half")
        ended({"missing": "why"})
    assert there() == before
    with pytest.raises(KeyboardInterrupt), rescored(tmp_path, ["a"]):
        raise KeyboardInterrupt
    assert there() == before
    with rescored(tmp_path, ["a"]) as ended:
        (tmp_path / "scores/a.npz").write_text("new")
        ended({"detectors": {}})
    assert there() == {"scores/a.npz": "new", "scores/b.npz": "old"}


def test_other_settings_are_other_scores(found, cache, monkeypatch):
    settings = {"k": 3}
    of_knn = lambda name: dict(settings) if name == "KNN on features" else {}  # noqa: E731
    monkeypatch.setattr("covary_bench.images.case.chosen", of_knn)
    work = cell_path(found, Cell.parse(NAME), cache).parent
    figure = {}
    for k in (3, 40, 3):
        settings["k"] = k
        assert stale(work, "KNN on features", settings)
        message = run_table(found, cache)["cells"][NAME]["detectors"]["KNN on features"]["masked"]
        figure.setdefault(k, message)
        assert figure[k] == message
        assert not stale(work, "KNN on features", settings)
    assert figure[3] != figure[40]
    assert not stale(work, "energy", {})


def test_the_chain_is_charged_to_everybody_who_reads_it(tmp_path):
    (tmp_path / "traces-abc.seconds.json").write_text("30.0")
    one = scoring.Scored(np.zeros(2), np.ones(2), 0.25)
    known = {"a": Baseline(len, "chain"), "b": Baseline(len, "chain"), "c": Baseline(len, "network")}
    found = {"covary alone": one, "a": replace(one, seconds=9.0), "b": one, "c": one}
    assert {name: own.seconds for name, own in with_chain(found, known, tmp_path, 10).items()} == {
        "covary alone": 0.25, "a": 9.0, "b": 9.0, "c": 0.25,
    }  # fmt: skip
    assert with_chain(found, known, tmp_path, 2)["b"].seconds == 15.0
    assert with_chain({"covary alone": one}, known, tmp_path, 2) == {"covary alone": one}


def test_a_chains_clock_goes_on_after_a_kill_and_stands_still_when_nothing_is_drawn(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(published.time, "perf_counter", lambda: now[0])
    folder = tmp_path / "traces-1"
    first = published._Clock(folder)
    for _ in range(2):
        now[0] += 5
        assert first.tick(None) is False
    assert published.chain_seconds(tmp_path) == 10.0  # killed here
    now[0] += 1000
    second = published._Clock(folder)
    now[0] += 3
    second.tick(None)
    now[0] += 4
    second.end()
    assert published.chain_seconds(tmp_path) == 17.0
    now[0] += 50
    published._Clock(folder).end()
    assert published.chain_seconds(tmp_path) == 17.0
    assert published.chain_seconds(tmp_path / "none") == 0.0


def test_a_pack_replaces_another_whole_or_not_at_all(tmp_path, monkeypatch):
    pack.write_pack("digits", tmp_path, limit=1.0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CovaryError, match="a larger --limit"):
        pack.write_pack("digits", tmp_path, limit=1e-4)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    few = Images(np.zeros((3, 16, 16, 1), np.uint8), np.arange(3), ["a", "b", "c"])
    monkeypatch.setattr(pack, "CHUNK", 2)
    monkeypatch.setitem(datasets.DATASETS, "digits-test", lambda: few)
    pack.write_pack("digits", tmp_path, limit=1.0)
    names = sorted(path.name for path in (tmp_path / "digits-test").iterdir())
    assert names == ["000.webp", "001.webp", "pack.json", "y.npy"]
    (tmp_path / "other" / "digits-test").mkdir(parents=True)
    (tmp_path / "other" / "digits-test" / "mine.txt").write_text("mine")
    with pytest.raises(CovaryError, match="is no pack"):
        pack.write_pack("digits", tmp_path / "other", limit=1.0)
    assert json.dumps([path.name for path in (tmp_path / "other").rglob("*")]) == '["digits-test", "mine.txt"]'
