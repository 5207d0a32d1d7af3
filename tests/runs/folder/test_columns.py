"""Tables: columns, values and which of them matter; layers and classes carry names; sentence and chart agree."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from covary.data.class_names import read_class_names
from covary.data.source import open_data
from covary.detector import Detector
from covary.errors import CovaryError
from covary.runs.folder.columns import column_cards, influence
from covary.runs.folder.write import write_run
from covary.runs.report import write_report

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 5)).astype(np.float32)
COLUMNS = ["age", "height", "weight", "pulse", "nothing"]


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    model[0].weight.data[:, 4] = 0  # the last column says nothing
    return model


@pytest.fixture(scope="module")
def detector():
    return Detector(net(), fpr=0.1, seed=1).fit(X[:60], class_names=["ant", "bee", "cat"])


def test_influence_is_the_derivative_of_the_explained_share_times_the_input(detector):
    source = open_data(X[60:64])
    x, rows = torch.from_numpy(X[60:64]), detector.rows(detector.open(source))
    found = influence(detector, x, rows)
    explanation, _ = detector.explainer.reconstruct(rows)
    for i in range(4):
        direction = explanation.weights[i] @ detector.explainer.units[explanation.candidates[i]]

        def share(values, direction=direction, i=i):
            some = detector.rows(detector.open(values[None].astype(np.float32)))
            assert some.predicted[0] == rows.predicted[i]
            vector = np.concatenate([part[0] for part in some.functional.values()]).astype(float)
            return vector @ direction / np.linalg.norm(vector)

        for c in range(5):
            step = np.zeros(5)
            step[c] = 1e-2
            slope = (share(X[60 + i] + step) - share(X[60 + i] - step)) / 2e-2
            assert found[i, c] == pytest.approx(slope * X[60 + i, c], abs=2e-3)


def test_the_most_influential_columns_come_first_with_name_and_value(detector):
    source = detector.open(X[60:64])
    source.reader.columns = COLUMNS
    cards = column_cards(detector, source)
    for i, card in enumerate(cards):
        names, values, shares = zip(*card["columns"], strict=True)
        assert sorted(names) == sorted(COLUMNS)
        assert list(values) == [pytest.approx(X[60 + i, COLUMNS.index(name)]) for name in names]
        assert list(shares) == sorted(shares, key=abs, reverse=True)
    assert open_data(RNG.normal(size=(3, 4, 5)).astype(np.float32)).columns is None


def test_columns_have_names_where_the_data_say(tmp_path):
    pandas = pytest.importorskip("pandas")
    np.savez(tmp_path / "a.npz", x=X, columns=COLUMNS)
    assert open_data(tmp_path / "a.npz").columns == COLUMNS
    frame = pandas.DataFrame(X, columns=COLUMNS)
    assert open_data(frame).columns == COLUMNS
    assert open_data((frame, np.zeros(80, int))).y.tolist() == [0] * 80
    assert open_data(X).columns[:2] == ["column 0", "column 1"]
    np.savez(tmp_path / "b.npz", x=X, columns=COLUMNS[:3])
    with pytest.raises(CovaryError, match="3 names of columns"):
        open_data(tmp_path / "b.npz")


@pytest.fixture(scope="module")
def runs(detector, tmp_path_factory):
    """A run with flags, and one without."""
    folder = tmp_path_factory.mktemp("runs")
    odd = X[60:].copy()
    odd[:3] = 40.0 * np.sign(odd[:3])
    for name, x in (("flags", odd), ("none", X[:60])):
        write_run(detector, detector.open(x), folder / name, report=write_report)
    return folder


def page(folder):
    return (folder / "report.html").read_text()


def test_where_nothing_is_flagged_the_highest_scores_are_shown(runs):
    summary = json.loads((runs / "none" / "summary.json").read_text())
    report = json.loads((runs / "none" / "report.json").read_text())
    assert summary["n_flagged"] == 0
    scores = np.genfromtxt(runs / "none" / "results.csv", delimiter=",", names=True, usecols=(0, 1))
    best = [f"{name:.0f}" for name in scores["id"][np.argsort(-scores["score"], kind="stable")]]
    assert [row["id"] for row in summary["highest"]] == best[:5]
    assert [card["id"] for card in report["clean_examples"]] == best[:6]
    assert "these inputs have the highest scores" in page(runs / "none")


def test_trusted_inputs_scanned_again_are_told_as_copies(runs):
    summary = json.loads((runs / "none" / "summary.json").read_text())
    assert summary["n_copies"] == 60
    assert any("60 of 60 inputs are copies of trusted ones" in text for text in summary["statements"])
    assert "A copy of the trusted input" in page(runs / "none")
    assert "highest" not in json.loads((runs / "flags" / "summary.json").read_text())


def test_the_sentence_names_the_part_that_stands_out_and_the_layer_of_its_chart(runs):
    text = page(runs / "flags")
    cards = json.loads((runs / "flags" / "report.json").read_text())["flagged"]
    assert cards
    panels = text.split('<article class="panel"')[1:]
    seen = 0
    for card, panel in zip(cards, panels, strict=False):
        sentence = re.search(r'<p class="sentence">(.*?)</p>', panel)[1]
        assert f"The {card['raised_by']} part raised the alarm" in sentence
        if card["raised_by"] == "confidence":
            continue
        chart = re.search(rf'data-family="{card["raised_by"]}".*?aria-live="polite">(.*?)</p>', panel, re.S)[1]
        layer = re.search(r"furthest: (.*?) at", chart)
        if layer:
            seen += 1
            assert f"most of all in {layer[1]}." in sentence
            assert layer[1] in ("layer 0 (Linear)", "layer 2 (Linear)")
    assert seen


def test_classes_and_columns_are_in_the_report(runs):
    text = page(runs / "flags")
    assert "Columns that matter" in text
    assert "column 3" in text
    assert any(name in text for name in (">ant<", ">bee<", ">cat<", "<b>ant</b>", "<b>bee</b>", "<b>cat</b>"))


def test_class_names_from_files(tmp_path):
    for name, content in (
        ("a.txt", "ant\nbee\n\n"), ("a.json", '["ant", "bee"]'), ("b.json", '{"0": "ant", "1": "bee"}'),
        ("c.json", '{"0": ["n01", "ant"], "1": ["n02", "bee"]}'),
    ):  # fmt: skip
        (tmp_path / name).write_text(content)
        assert read_class_names(tmp_path / name) == ["ant", "bee"]
    for name, content, words in (
        ("d.json", '{"0": "ant", "2": "bee"}', "keys 0, 2"), ("e.json", "7", "hold a int"), ("f.json", "{", "no JSON"),
        ("g.txt", "ant\n\nbee", "nameless"), ("h.txt", "", "empty"),
    ):  # fmt: skip
        (tmp_path / name).write_text(content)
        with pytest.raises(CovaryError, match=words):
            read_class_names(tmp_path / name)
    with pytest.raises(CovaryError, match="cannot be read"):
        read_class_names(tmp_path / "nowhere.txt")
    with pytest.raises(CovaryError, match="2 class names; expected 3"):
        Detector(net(), fpr=0.1).fit(X, class_names=["ant", "bee"])
