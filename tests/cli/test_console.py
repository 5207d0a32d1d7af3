"""What people see in the terminal."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from covary.cli import console


@pytest.fixture
def terminal(monkeypatch):
    """stderr as a terminal whose text is kept."""
    screen = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=screen, force_terminal=True, width=120))
    return screen


@pytest.fixture
def clock(monkeypatch):
    """A clock to be set by hand."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(console.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_bar_with_rate_and_time_left_after_two_seconds(terminal, clock):
    with console.Terminal().progress("inputs") as bar:
        assert bar is not None
        clock.now = 1.9
        bar(10, 400)
        assert terminal.getvalue() == ""
        clock.now = 4.0
        bar(100, 400)
        clock.now = 5.0
        bar(200, 400)
    text = terminal.getvalue()
    assert "inputs" in text
    assert "200/400" in text
    assert "40/s" in text
    assert "0:00:0" in text


def test_no_bar_where_nobody_watches(capsys, terminal):
    with console.terminal(True).progress("inputs") as bar:
        assert bar is None
    with console.terminal(True).waiting("looking"):
        pass
    assert terminal.getvalue() == ""


def test_a_log_gets_a_line_every_half_minute(capsys, clock):
    with console.Terminal().progress("inputs") as tell:
        assert tell is not None
        for clock.now, done in ((1.0, 10), (29.0, 200), (31.0, 310), (60.0, 500), (61.5, 615)):
            tell(done, 1200)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "inputs: 310 of 1,200 (26 %), 10/s, about 89 s left", "inputs: 615 of 1,200 (51 %), 10/s, about 58 s left"
    ]  # fmt: skip


def test_work_that_cannot_say_how_far_it_is_is_told_in_a_log(capsys, monkeypatch):
    monkeypatch.setattr(console, "EVERY", 0.01)
    with console.Terminal().waiting("asking for the answers"):
        err, tries = "", 0
        while not err and (tries := tries + 1) <= 300:
            console.time.sleep(0.01)
            err = capsys.readouterr().err
    assert err.startswith("asking for the answers: 0 s so far")


def test_a_log_gets_its_line_while_one_step_takes_long(capsys, monkeypatch):
    monkeypatch.setattr(console, "EVERY", 0.01)
    with console.Terminal().progress("texts answered") as tell:
        assert tell is not None
        tell(32, 470)
        lines, tries = [], 0
        while len(lines) < 2 and (tries := tries + 1) <= 300:
            console.time.sleep(0.01)
            lines += capsys.readouterr().err.splitlines()
    assert all(line.startswith("texts answered: 32 of 470 (7 %)") for line in lines[-2:])


@pytest.mark.parametrize(
    ("done", "said"),
    [(0, "inputs: 0 of 200 (0 %), 0/s"), (50, "inputs: 50 of 200 (25 %), "), (200, "inputs: all 200 read, working")],
)
def test_a_line_tells_time_left_only_while_that_is_known(done, said, capsys):
    lines = console._Lines("inputs")
    lines.started -= 60
    lines(done, 200)
    lines.say()
    printed = " ".join(capsys.readouterr().err.split())
    assert printed.startswith(said)
    assert ("left" in printed) == (0 < done < 200)


def test_short_work_leaves_a_log_alone(capsys, clock):
    with console.Terminal().progress("inputs") as tell:
        assert tell is not None
        tell(5, 10)
    with console.Terminal().waiting("looking"):
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("level", "json", "silent"), [(0, False, False), (0, True, True), (1, True, False), (-1, False, True)]
)
def test_how_much_is_told(level, json, silent, monkeypatch):
    monkeypatch.setattr(console, "level", lambda: level)
    assert (console.terminal(json) is console.SILENT) == silent


@pytest.mark.parametrize(("seconds", "said"), [(40.0, "40 s"), (700.0, "12 min"), (12_600.0, "3.5 h")])
def test_durations(seconds, said):
    assert console.duration(seconds) == said


def test_a_spinner_for_work_that_cannot_say_how_far_it_is(terminal, monkeypatch):
    monkeypatch.setattr(console, "PATIENCE", 0.0)
    with console.Terminal().waiting("looking at network and data"):
        for _ in range(100):
            console.time.sleep(0.01)
            if "looking" in terminal.getvalue():
                break
    assert "looking at network and data" in terminal.getvalue()


def test_a_spinner_stays_away_from_short_work(terminal):
    with console.Terminal().waiting("looking at network and data"):
        pass
    assert terminal.getvalue() == ""


def test_json_is_one_document_with_unicode(capsys):
    console.print_json({"name": "Größe", "value": 1})
    assert json.loads(capsys.readouterr().out) == {"name": "Größe", "value": 1}


def test_errors_are_one_line_and_brackets_are_not_markup(capsys):
    console.print_error("found [bold]this[/bold] in " + "x" * 300)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: found [bold]this[/bold] in " + "x" * 300 + "\n"


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("pass weights=", "pass --weights"),
        ("or use estimator=first-order", "or use --estimator first-order"),
        ("pass together=False", "pass --alone"),
        ("raise fpr= or fdr=", "raise --fpr or fdr="),
        ("trust more, or pass allow_missing_classes=True", "trust more, or pass --allow-missing-classes"),
        ("found a=1 and x==weights", "found a=1 and x==weights"),
    ],
)
def test_arguments_of_python_are_told_as_options(sentence, said):
    flags = {name: "--" + name.replace("_", "-") for name in ("weights", "estimator", "allow_missing_classes", "fpr")}
    flags |= {"together": "--together", "together=False": "--alone"}
    assert console.as_flags(sentence, flags) == said


FINDINGS = [
    {"level": "ok", "title": "Inputs", "text": "fine.", "change": ""},
    {"level": "warning", "title": "Accuracy", "text": "low [sic].", "change": "Check --mean."},
]


def test_findings(capsys):
    console.print_findings(FINDINGS, everything=True)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == ["ok      Inputs: fine.", "warning Accuracy: low [sic].", "        Check --mean."]
    console.print_findings(FINDINGS, everything=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["warning Accuracy: low [sic].", "        Check --mean."]


SUMMARY = {
    "n": 1200, "n_flagged": 12, "fpr_in_force": 0.01, "fdr": None, "statements": ["One thing."], "n_reference": 3,
    "n_fit": 4, "n_calibration": 5, "calibration": "split", "p_min": 0.1, "seconds": 2.0,
}  # fmt: skip
TRUTH = {
    "n_clean": 10, "n_anomalous": 0, "fpr": 0.2, "fpr_interval": [0.0, 0.3], "tpr": None, "auroc": None,
    "auroc_masked": None, "auroc_parts": {}, "der": None,
}  # fmt: skip
FULL = {
    "n_anomalous": 5, "tpr": 0.5, "auroc": 0.7, "auroc_masked": 0.8, "auroc_parts": {"latent": 0.6}, "der": 0.9,
    "der_ceiling": 0.95, "der_masked": 0.91,
}  # fmt: skip


def printed(capsys, summary):
    console.print_summary(summary, "runs/a/report.html")
    return capsys.readouterr().out


def test_the_answer_comes_first(capsys):
    assert printed(capsys, SUMMARY).startswith(
        "12 of 1,200 inputs flagged at a false-alarm rate of 1 %.\n  One thing.\n"
    )
    assert "an expected share of false alarms of 0.1" in printed(capsys, {**SUMMARY, "fdr": 0.1})


def test_figures_that_are_known_are_told_and_others_are_not(capsys):
    text = printed(capsys, {**SUMMARY, **TRUTH})
    assert "20.00 % of 10 clean inputs" in text
    assert "caught" not in text
    assert "AUROC" not in text
    text = printed(capsys, {**SUMMARY, **TRUTH, **FULL})
    assert "50.00 % of 5 anomalous inputs" in text
    assert "0.8000 (masked)" in text
    assert "0.9000 (ceiling 0.9500), masked 0.9100" in text
    assert "0.7000 (all inputs)" in printed(capsys, {**SUMMARY, **TRUTH, **FULL, "auroc_masked": None})


def test_a_record_is_one_line_a_fact(capsys):
    console.print_record({"kind": "detector", "settings": {"fpr": 0.01, "amp": None}, "said": ["a", "b"], "none": []})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["kind", "detector"], ["settings.fpr", "0.01"], ["said", "a"], ["b"]]
