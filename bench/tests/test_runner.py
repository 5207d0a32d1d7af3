"""The runner on digits: every kind of table small enough for a test, killed and resumed, and what a newcomer adds."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from covary.detector import Detector
from covary.errors import CovaryError
from covary_bench import commands, scoring, settings, tune
from covary_bench.baselines.images import BASELINES, Baseline
from covary_bench.images import attacks, datasets, foreign, pack, packed
from covary_bench.images.attacks import Attack
from covary_bench.images.case import ImageCase
from covary_bench.images.ingredients import Cutter
from covary_bench.images.makers import hard
from covary_bench.prepared import Prepared
from covary_bench.records import read_record
from covary_bench.runner import cell_path, results, run_table, selected_baselines
from covary_bench.scoring import OURS, scores_path
from covary_bench.table import SCALES, TABLES, from_toml, read

PAGE = Path(__file__).parents[2] / "docs" / "benchmark.md"
TINY = {"datasets": ["digits"], "trusted": 340, "clean": 60, "anomalous": 60,
        "baselines": ["energy", "KNN on features", "functional part", "SCALE-UP"]}  # fmt: skip


def small(name: str, what: list[str], **changes):
    return from_toml(name, "ci", {**read(name), "ci": {**TINY, "what": what, **changes}})


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Victims and cases that tests share; each test uses cells of its own."""
    return tmp_path_factory.mktemp("bench")


def same(a, b):
    """Whether two results agree but for what takes time."""

    def timeless(value):
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if not k.startswith(("seconds", "training_seconds"))}
        return value

    return timeless(a) == timeless(b)


def test_a_table_from_nothing_by_one_command(cache, tmp_path, run_cli, monkeypatch):
    monkeypatch.setattr(commands, "table", lambda name, scale: small(name, ["badnets"]))
    code, out, _ = run_cli("run", "vision", "--cache", cache / "a", "--out", tmp_path, "--json")
    assert code == 0
    message = json.loads(out)["vision"]
    record = read_record(tmp_path / "vision-ci.json")
    assert message["mean_auroc_masked"] == pytest.approx(record["mean_auroc_masked"], abs=1e-4)
    assert record["mean_auroc_masked"] > 0.9
    cell = record["cells"]["badnets/digits/0"]
    assert set(cell["detectors"]) == {"covary alone", *TINY["baselines"]}
    assert cell["victim"]["attack_success"] > 0.8
    assert cell["about"]["versions"]["torch"] == torch.__version__
    for found in cell["detectors"].values():
        assert found["seconds_a_query"] > 0
        assert found["masked"]["n_clean"] <= 60
    ours = cell["detectors"]["covary alone"]
    low, high = ours["masked"]["auroc_interval"]
    assert low <= ours["masked"]["auroc"] <= high
    assert 0.5 <= ours["der"]["best"] <= ours["der"]["ceiling"]
    assert record["mean_der_calibrated"] == pytest.approx(ours["masked"]["der_calibrated"], abs=1e-4)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".csv", ".md", ".html"}


def test_one_command_regenerates_a_cell(cache, tmp_path):
    found = small("vision", ["badnets"])
    first = run_table(found, cache)["cells"]["badnets/digits/0"]
    fresh = run_table(found, tmp_path)["cells"]["badnets/digits/0"]  # the victim, too
    again = run_table(found, cache, only=["badnets/digits/0"], again=True)["cells"]["badnets/digits/0"]
    assert same(first, fresh)
    assert same(first, again)
    assert first["victim"]["training_seconds"] == again["victim"]["training_seconds"]  # the same victim, not a new one


def test_a_killed_run_goes_on(cache, monkeypatch):
    found, calls = small("vision", ["badnets"], seeds=[1]), []
    cell = found.cells[0]

    def killed(*arguments, **named):
        raise KeyboardInterrupt

    energy = BASELINES["energy"]

    def counted(material):
        calls.append("energy")
        return energy(material)

    monkeypatch.setitem(BASELINES, "energy", Baseline(counted))
    monkeypatch.setitem(BASELINES, "KNN on features", Baseline(killed, "features", {"k": (10,)}))
    with pytest.raises(KeyboardInterrupt):
        run_table(found, cache)
    work = cell_path(found, cell, cache).parent
    assert not (work / "result.json").exists()
    assert scores_path(work, "energy").is_file()
    assert not list(work.rglob("*.part*"))
    monkeypatch.undo()
    monkeypatch.setitem(BASELINES, "energy", Baseline(counted))
    monkeypatch.setattr(Prepared, "_features", killed)  # rows and features are there
    record = run_table(found, cache)
    assert calls == ["energy"]
    assert record["cells"][str(cell)]["detectors"]["KNN on features"]["masked"]["auroc"] is not None
    monkeypatch.setattr("covary_bench.runner.run_cell", killed)
    assert same(run_table(found, cache)["cells"], record["cells"])  # finished cells are not touched


def test_missing_cells_are_marked_and_others_go_on(cache):
    found = small("vision", ["badnets", "no-such-attack"])
    said = []
    record = run_table(found, cache, say=said.append)
    missing = record["cells"]["no-such-attack/digits/0"]["missing"]
    assert "unknown name in the cell no-such-attack/digits/0, 'no-such-attack'" in missing
    assert record["marked"] == {"no-such-attack/digits/0": "missing"}
    one = record["cells"]["badnets/digits/0"]["detectors"]["covary alone"]["masked"]["auroc"]
    assert record["mean_auroc_masked"] == pytest.approx((one + 0.5) / 2)
    assert record["measured"]["mean_auroc_masked"] == pytest.approx(one)
    assert any(line.startswith("no-such-attack/digits/0: missing") for line in said)


def test_few_trusted_samples_are_cross_conformal_for_everybody(cache):
    found = small("sensitivity", ["badnets:trusted=12"])
    cell = run_table(found, cache)["cells"]["badnets:trusted=12/digits/0"]
    assert cell["calibration"].startswith("cross-conformal")
    with np.load(scores_path(cell_path(found, found.cells[0], cache).parent, "energy")) as stored:
        assert len([name for name in stored.files if name.startswith("fold")]) == 5
    energy = cell["detectors"]["energy"]["masked"]
    assert 0 <= energy["fpr"] <= 0.15


def test_baselines_share_split_and_rule(cache):
    found = small("vision", ["badnets"])
    run_table(found, cache)
    work = cell_path(found, found.cells[0], cache).parent
    prepared = Prepared(work / "case", work, found.fpr)
    calibration = prepared.folds()[0][2]
    material = prepared.material(0, "network")
    roles = prepared.judge.roles
    assert list(material.trusted.ids) == roles["reference"] + roles["fit"]
    assert list(material.queries.ids)[: len(calibration)] == roles["calibration"]
    assert list(material.queries.ids)[len(calibration) :] == list(prepared.queries.ids)
    assert len(calibration) == len(prepared.judge.calibration_scores)
    logits = material.probe.logits(material.probe.queries)
    np.testing.assert_array_equal(logits.argmax(1), material.queries.predicted)
    np.testing.assert_array_equal(material.probe.predicted(material.probe.trusted), material.trusted.predicted)
    ids = [set(np.load(work / "case" / f"{name}.npz")["id"]) for name in ("trusted", "inputs")]
    assert not {name.split(" ")[-1] for name in ids[1]} & ids[0]


def test_poisoned_and_unbalanced_trusted_sets(cache):
    found = small("sensitivity", ["badnets:poisoned=0.1", "badnets:imbalance=0.2", "clean"])
    record = run_table(found, cache)
    poisoned, thin, clean = (record["cells"][f"{name}/digits/0"] for name in found.size.what)
    assert poisoned["n_poisoned_trusted"] == round(0.1 * poisoned["n_trusted"])
    with np.load(cell_path(found, found.cells[0], cache).parent / "case" / "trusted.npz") as stored:
        bad = np.array([name.startswith("poisoned") for name in stored["id"]])
        assert (stored["y"][bad] == 0).all()
        assert (stored["x"][bad][:, -3:, -3:] == 255).all()
    assert min(thin["trusted_per_class"]) == round(0.2 * max(thin["trusted_per_class"]))
    assert clean["detectors"]["covary alone"]["masked"]["auroc"] is None
    assert 0 <= clean["detectors"]["covary alone"]["end_to_end"]["fpr"] <= 0.3


def test_mechanisms_hard_inputs_adversarial_and_foreign_ones(cache, monkeypatch):
    record = run_table(small("mechanisms", ["badnets+blended"], anomalous=50), cache)
    cell = record["cells"]["badnets+blended/digits/0"]
    assert (cell["mechanisms_true"], cell["mechanisms_found"]) == (2, 2)
    assert cell["ari"] > 0.8
    assert sum(cell["cluster_sizes"].values()) == cell["n_flagged"]
    monkeypatch.setattr("covary.features.survival.LEAST_CHANGED", 0.0)
    record = run_table(small("hard", ["noise", "rare-classes"], ways=list(scoring.WAYS)), cache)
    for cell in record["cells"].values():
        rates = cell["false_positive_rates"]["covary alone"]
        assert cell["times_nominal"] == pytest.approx(rates["hard"] / 0.05, abs=1e-3)
        assert 0.5 < cell["second_axis_auroc"] <= 1
        assert cell["detectors"]["covary alone"]["end_to_end"]["n_clean"] == 60  # hard ones are told apart
        for way, own in cell["false_positive_rates"].items():
            assert ("hard_without" in own) == (way in scoring.LOOKING)
        assert all(card["odd"] == 0 for card in cell["cards_without"])
        assert max(card["odd"] for card in cell["cards"]) > 30
    noisy = record["cells"]["noise/digits/0"]["false_positive_rates"][scoring.BOTH]
    assert noisy["clean_without"] <= noisy["hard_without"] < 0.3
    cell = run_table(small("adversarial", ["pgd-linf"]), cache)["cells"]["pgd-linf/digits/0"]
    assert cell["detectors"]["covary alone"]["same_class"] is None
    assert cell["detectors"]["covary alone"]["masked"]["n_anomalous"] < 60
    record = run_table(small("ood", ["patches", "openood-svhn"]), cache)
    assert record["cells"]["patches/digits/0"]["detectors"]["covary alone"]["masked"]["auroc"] > 0.9
    assert record["cells"]["patches/digits/0"]["distance"] == "far"
    assert "set COVARY_OPENOOD" in record["cells"]["openood-svhn/digits/0"]["missing"]


def test_hard_inputs_are_not_taken_away_from_the_trusted_ones(cache, tmp_path):
    found = small("hard", ["misclassified", "noise"])
    trusted = {}
    for cell in found.cells:
        hard.make(cell, found.size, cache, tmp_path / cell.what)
        trusted[cell.what] = np.load(tmp_path / cell.what / "trusted.npz")["id"].tolist()
    assert trusted["misclassified"] == trusted["noise"]


def test_openood_lists(tmp_path, monkeypatch):
    (tmp_path / "benchmark_imglist" / "cifar10").mkdir(parents=True)
    (tmp_path / "images_classic" / "svhn").mkdir(parents=True)
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 40:] = 200
    Image.fromarray(wide).save(tmp_path / "images_classic" / "svhn" / "a b.png")
    (tmp_path / "benchmark_imglist" / "cifar10" / "test_svhn.txt").write_text("svhn/a b.png -1\n")
    monkeypatch.setenv("COVARY_OPENOOD", str(tmp_path))
    found = foreign.load("openood-svhn", (32, 32, 3))
    assert found.x.shape == (1, 32, 32, 3)
    assert found.x[0, 16, 2, 0] < 20 < 180 < found.x[0, 16, 29, 0]
    assert list(found.y) == [datasets.NO_CLASS]
    grey = foreign.fitted(np.full((2, 28, 28, 1), 9, np.uint8), (32, 32, 3))
    assert grey.shape == (2, 32, 32, 3)
    assert grey[0, 0, 0, 0] == 0
    assert (grey[0, 2:30, 2:30] == 9).all()


def test_images_are_dealt_once():
    images = datasets.load("digits-test")
    cutter = Cutter(images, 0)
    parts = [cutter.balanced(100), cutter.first(50), cutter.first(70, images.y == 3), cutter.per_class({1: 5, 2: 3})]
    ids = [name for part in parts for name in part.id]
    assert len(ids) == len(set(ids))
    assert np.bincount(parts[0].y).tolist() == [10] * 10
    assert (parts[2].y == 3).all()
    assert np.bincount(parts[3].y).tolist() == [0, 5, 3]
    assert list(Cutter(images, 0).balanced(100).id) == list(parts[0].id)
    assert list(Cutter(images, 1).balanced(100).id) != list(parts[0].id)


def test_tuning_looks_at_tuning_cells_alone(cache, monkeypatch, tmp_path):
    found = replace(small("vision", ["badnets", "blended"]), tuning=["badnets/digits/0"])
    few = {name: BASELINES[name] for name in ("KNN on features", "energy", "SCALE-UP")}
    monkeypatch.setattr(tune, "BASELINES", few)
    made = tune.tuned(found, cache, say=lambda line: None)
    assert set(made["chosen"]) == {"KNN on features", "SCALE-UP"}
    assert set(made["by_cell"]) == {"badnets/digits/0"}
    values = made["mean_auroc_masked"]["KNN on features"]
    assert len(values) == 5
    assert values[repr(made["chosen"]["KNN on features"])] == max(values.values())
    monkeypatch.setattr(tune, "table", lambda name, scale: found)
    monkeypatch.setattr(tune, "settings_file", lambda: tmp_path / "baselines.toml")
    run = tune.run("ci", cache, tmp_path, say=lambda line: None)
    assert run["chosen"] == made["chosen"]
    monkeypatch.setattr(settings, "settings_file", lambda: tmp_path / "baselines.toml")
    settings._all.cache_clear()
    try:
        assert settings.chosen("KNN on features") == made["chosen"]["KNN on features"]
        assert settings.chosen("SCALE-UP") == made["chosen"]["SCALE-UP"]
        assert settings.chosen("energy") == {}
        (tmp_path / "baselines.toml").write_text('["STRIP"]\nalpha = 1\n')
        settings._all.cache_clear()
        with pytest.raises(CovaryError, match="unknown setting of STRIP 'alpha'; expected one of: weight, images"):
            settings.chosen("STRIP")
    finally:
        settings._all.cache_clear()


def test_hours_are_asked_for(cache, tmp_path):
    found = replace(small("vision", ["badnets"]), size=replace(small("vision", ["badnets"]).size, baselines=[]))
    case = ImageCase(found, found.cells[0], tmp_path)
    assert "published (CLC)" not in selected_baselines(found, case, chains=False)
    assert "published (CLC)" in selected_baselines(found, case, chains=True)
    scores_path(case.work, "published (CLC)").parent.mkdir(parents=True)
    scores_path(case.work, "published (CLC)").touch()
    assert "published (CLC)" in selected_baselines(found, case, chains=False)


def test_a_pack_is_read_in_place_of_the_set(tmp_path, monkeypatch):
    message = pack.write_pack("digits", tmp_path, limit=1.0)
    assert message["digits-test"]["images"] == 997
    assert sum(part["bytes"] for part in message.values()) <= 1e6
    full_set = datasets.load("digits-test")
    monkeypatch.setitem(datasets.DATASETS, "digits-test", lambda: pytest.fail("the pack was not read"))
    monkeypatch.setenv("COVARY_PACKS", str(tmp_path))
    found = datasets.load("digits-test")
    np.testing.assert_array_equal(found.x, full_set.x)
    np.testing.assert_array_equal(found.y, full_set.y)
    assert list(found.id) == list(full_set.id)
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (130, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(packed.images_of(packed.mosaic(colour), 130, (32, 32, 3)), colour)
    with pytest.raises(CovaryError, match="unknown data set to pack 'digit'"):
        pack.write_pack("digit", tmp_path)
    with pytest.raises(CovaryError, match="a larger --limit"):
        pack.write_pack("digits", tmp_path / "b", limit=1e-4)


# A newcomer ----------------------------------------------------------------------------------------------------------


def blocks(page: str) -> dict[str, str]:
    """Titled blocks of the page: file -> text."""
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', page, re.M | re.S))


def test_what_the_page_adds_works(cache, tmp_path, monkeypatch):
    page = PAGE.read_text("utf-8")
    files = blocks(page)
    assert set(files) == {"inverted.py", "distance.py", "turned.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert len(text.splitlines()) < 25
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    lines = re.findall(r'^    "([^"]+)": (.+),$', page, re.M)
    assert [name for name, _ in lines] == ["inverted", "distance", "turned"]
    for (name, line), (holder, module) in zip(
        lines,
        [(attacks.ATTACKS, "inverted"), (BASELINES, "distance"), (foreign.FOREIGN, "turned")],
        strict=True,
    ):
        names = {"Baseline": Baseline, "Foreign": foreign.Foreign, module: __import__(module)}
        monkeypatch.setitem(holder, name, eval(line, names))
    assert isinstance(attacks.ATTACKS["inverted"], Attack)
    record = run_table(small("vision", ["inverted"], baselines=["distance"]), cache)
    cell = record["cells"]["inverted/digits/0"]
    assert cell["victim"]["attack_success"] > 0.8
    assert cell["detectors"]["distance"]["masked"]["auroc"] is not None
    record = run_table(small("ood", ["turned"], baselines=["distance"]), cache)
    assert "missing" not in record["cells"]["turned/digits/0"]
    for module in ("inverted", "distance", "turned"):
        sys.modules.pop(module)


def test_the_page_names_every_table_and_baseline():
    page = PAGE.read_text("utf-8")
    for name in (*TABLES, *SCALES, "tune", "pack", *BASELINES):
        assert f"`{name}`" in page or f"| {name} |" in page, name


def test_a_record_stands_in_for_cells_that_the_cache_lacks(tmp_path):
    found = small("vision", ["badnets", "blended"])
    known = {"badnets/digits/0": {"cell": "badnets/digits/0", "detectors": {}}}
    made = results(found, tmp_path, known=known)
    assert made["badnets/digits/0"] == known["badnets/digits/0"]
    assert made["blended/digits/0"]["missing"] == "not run"
    path = cell_path(found, found.cells[0], tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text('{"cell": "newer", "detectors": {}}')
    assert results(found, tmp_path, known=known)["badnets/digits/0"] == {"cell": "newer", "detectors": {}}
    path.write_text('{"cell": "newer", "missing": "no data"}')
    assert results(found, tmp_path, known=known)["badnets/digits/0"] == known["badnets/digits/0"]
    assert results(found, tmp_path)["badnets/digits/0"]["missing"] == "no data"


def test_what_a_run_left_out_stays_while_the_victim_is_the_same(tmp_path):
    found = small("vision", ["badnets"])
    victim = {"attack_success": 0.94766, "training_seconds": 3.0}
    here = {"cell": "badnets/digits/0", "victim": victim, "detectors": {"covary alone": 1, "energy": 2}}
    path = cell_path(found, found.cells[0], tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(here))
    detectors = {"energy": 3, "STRIP": 4, "published (CLC)": 5}
    for success, kept in ((0.9477, {"STRIP": 4, "published (CLC)": 5}), (0.9, {})):
        known = {"badnets/digits/0": {"victim": {"attack_success": success}, "detectors": detectors}}
        merged = results(found, tmp_path, known=known)["badnets/digits/0"]
        assert merged["detectors"] == {**here["detectors"], **kept}


def test_ways_of_covary_are_those_of_the_detector(cache, monkeypatch):
    # The tiny network hardly changes an answer when it is amplified; survival is measured all the same.
    monkeypatch.setattr("covary.features.survival.LEAST_CHANGED", 0.0)
    found = small("vision", ["badnets"])
    run_table(found, cache)
    prepared = ImageCase(found, found.cells[0], cache).prepared("cpu")
    facts, scored = prepared.facts, {}
    source = {name: prepared.source(name) for name in ("trusted", "inputs")}
    asked = {
        OURS: ("fast", "combined", False), scoring.THOROUGH: ("thorough", "combined", False),
        scoring.TOGETHER: ("fast", "combined", True), scoring.BOTH: ("thorough", "combined", True),
        scoring.EQUAL: ("thorough", "equal-confidence", True),
    }  # fmt: skip
    benign = prepared.inputs.truth == 0
    for name, (evidence, score, together) in asked.items():
        detector = Detector(facts["model"], weights=facts["weights"], evidence=evidence, conformal="split",
                            score=score, fpr=found.fpr, allow_missing_classes=True)  # fmt: skip
        detector.fit(source["trusted"])
        for chosen in (np.ones(len(benign), bool), benign) if together else (np.ones(len(benign), bool),):
            pile = source["inputs"].take(np.flatnonzero(chosen))
            verdicts = detector.score(pile, together=together)
            scored.setdefault(name, verdicts.score)
            ours = {OURS: scoring.ours, **scoring.WAYS}[name](prepared.with_inputs(chosen))
            np.testing.assert_allclose(ours.score, verdicts.score, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(ours.p_value, verdicts.p_value, atol=1e-9)
    # Every way says something of its own: survival has been measured, and the pile has been looked at.
    assert set(scored) == {OURS, *scoring.WAYS}
    assert len({values.tobytes() for values in scored.values()}) == 5


def test_other_sizes_begin_anew(cache):
    small_cell = run_table(small("vision", ["badnets"], seeds=[2], clean=20), cache)["cells"]["badnets/digits/2"]
    assert small_cell["n_clean"] == 20
    found = small("vision", ["badnets"], seeds=[2], clean=30)
    assert run_table(found, cache)["cells"]["badnets/digits/2"]["n_clean"] == 30


def test_an_attacker_keeps_what_still_works(cache, monkeypatch):
    from covary_bench.images.makers import hidden

    calls = []

    def escalate(victim, folder, hide, *, budget):
        calls.append((hide, budget.steps))
        made = []
        for strength, success in ((1.0, 0.95), (4.0, 0.85), (16.0, 0.1)):
            place = folder / f"{Path(victim.weights).parent.name}-hidden-{hide}" / f"{strength:g}"
            place.mkdir(parents=True, exist_ok=True)
            (place / "weights.safetensors").write_bytes(Path(victim.weights).read_bytes())
            made.append(hidden.adaptive.Attempt(hide, strength, 0.9, success, {"KNN": 0.5}))
        return made

    monkeypatch.setattr(hidden.adaptive, "escalate", escalate)
    name = "badnets:hidden=gradients:steps=7"
    cell = run_table(small("adaptive", [name]), cache)["cells"][f"{name}/digits/0"]
    assert calls == [("gradients", 7)]
    assert (cell["victim"]["strength"], cell["victim"]["attack_success"]) == (4.0, 0.85)
    assert [attempt["attack_success"] for attempt in cell["victim"]["attempts"]] == [0.95, 0.85, 0.1]
    assert cell["victim"]["before"]["attack_success"] > 0.8
    wrong = run_table(small("adaptive", ["badnets:hidden=walls"]), cache)["cells"]["badnets:hidden=walls/digits/0"]
    assert "unknown place to hide from 'walls'; expected one of: activations, gradients" in wrong["missing"]
