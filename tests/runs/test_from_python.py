"""What a Python session asks of a detector beside verdicts: ids, a report, a check; and figures."""

from __future__ import annotations

import builtins
import csv

import matplotlib as mpl
import numpy as np
import pytest

import texts
import tiny
from covary import plot
from covary.data.source import open_data
from covary.detector import Detector
from covary.errors import CovaryError

mpl.use("agg")


@pytest.fixture(scope="module")
def odd():
    """Digits, and 1 for those that are odd."""
    x, _, truth = tiny.inputs()
    return x, truth


def test_ids_go_everywhere(odd):
    x, _ = odd
    names = [f"q{i}" for i in range(len(x))]
    detector = Detector(tiny.trained(), conformal="split").fit(
        tiny.trusted(), ids=[f"t{i}" for i in range(tiny.TRUSTED)]
    )
    assert set(detector.judge.reference.ids) <= {f"t{i}" for i in range(tiny.TRUSTED)}
    assert detector.score(x, ids=names).ids == names
    assert detector.score(x, ids=names, together=True).ids == names
    [evidence] = detector.explain(x[:1], ids=["q0"])
    assert evidence.id == "q0"
    assert all(witness.id.startswith("t") for witness in evidence.explained_by)
    assert [name for batch, _, _ in detector.stream(x, ids=names) for name in batch.ids] == names
    with pytest.raises(CovaryError, match="as many ids as inputs"):
        detector.score(x, ids=names[1:])
    with pytest.raises(CovaryError, match="more than once"):
        detector.score(x, ids=["same"] * len(x))


def test_renamed_inputs_keep_the_others_names_and_the_original_its_own():
    source = open_data(np.zeros((4, 3), np.float32))
    some = source.take([2, 0]).renamed(["c", "a"])
    assert some.ids == ["c", "a"]
    assert source.ids == ["0", "1", "2", "3"]


def test_renamed_texts_carry_their_names(tmp_path):
    detector = Detector(str(texts.saved(tmp_path / "model")), max_new_tokens=4)
    source = detector.open(texts.records(3)).renamed(["a", "b", "c"])
    assert source.ids == [text.id for text in source.texts] == ["a", "b", "c"]


def test_a_report_is_the_run_that_score_writes(fitted, odd, tmp_path):
    x, truth = odd
    names = [f"q{i}" for i in range(len(x))]
    page = fitted.report(tmp_path / "run", x, ids=names, truth=truth)
    assert page == tmp_path / "run" / "report.html"
    assert "q104" in page.read_text("utf-8")
    with (tmp_path / "run" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    verdicts = fitted.score(x)
    assert [row["id"] for row in rows] == names
    assert [row["flagged"] == "true" for row in rows] == verdicts.flagged.tolist()
    table = verdicts.to_pandas()
    assert set(table.columns) <= set(rows[0])


def test_check_of_inputs_alone(fitted, odd):
    x, _ = odd
    report = fitted.check(x)
    assert report.ok
    assert report.figures["looked_at"] == len(x)
    assert str(report).startswith("ok      Inputs: 160 of shape 1x8x8")
    again = fitted.check(tiny.trusted()[0])
    assert "copies of trusted ones" in str(again)
    narrow = fitted.check(x[:, :, :4])
    assert not narrow.ok
    broken = x.astype(np.float32)
    broken[0] = np.nan
    assert not fitted.check(broken).ok
    with pytest.raises(CovaryError, match="call fit"):
        Detector(tiny.trained()).check(x)


def test_check_beside_trusted_inputs_is_the_commands(odd):
    report = Detector(tiny.trained()).check(odd[0], tiny.trusted()[0])
    assert report.ok
    assert {"False-alarm rate", "Classes"} <= {finding.title for finding in report.findings}


# Figures -------------------------------------------------------------------------------------------------------------


def test_scores_are_counted_by_verdict(fitted, odd):
    verdicts = fitted.score(odd[0])
    ax = plot.scores(verdicts, threshold=fitted.judge.threshold)
    drawn = [sum(bar.get_height() for bar in bars) for bars in ax.containers]
    assert drawn == [(~verdicts.flagged).sum(), verdicts.flagged.sum()]
    with pytest.raises(CovaryError, match="no verdicts"):
        plot.scores(verdicts[:0])


def test_a_profile_has_a_bar_for_every_layer_of_every_part(fitted, odd):
    [evidence] = fitted.explain(odd[0][-1:])
    ax = plot.profile(evidence)
    widths = sorted(bar.get_width() for bars in ax.containers for bar in bars)
    assert widths == pytest.approx(sorted(v for layers in evidence.layers.values() for v in layers.values()))


def test_cards_show_the_worst_first(fitted, odd):
    figure = plot.cards(fitted, odd[0], most=3)
    titles = [ax.get_title() for ax in figure.axes]
    order = np.argsort(-fitted.score(odd[0]).score, kind="stable")[:3]
    columns = len(figure.axes) // 3
    assert [titles[i * columns].split("\n")[0] for i in range(3)] == [str(i) for i in order]
    with pytest.raises(CovaryError, match="cannot be shown"):
        plot.cards(fitted, odd[0], most=0)


def test_without_matplotlib_the_extra_is_named(fitted, odd, monkeypatch):
    real = builtins.__import__

    def none(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(CovaryError, match=r"covary\[plot\]"):
        plot.scores(fitted.score(odd[0]))
