"""`covary.toml`, `covary init` that writes it, and completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from covary.cli import config
from covary.cli.main import app
from covary.errors import CovaryError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with data, in which one works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(home, text: str) -> None:
    (home / config.NAME).write_text(text, encoding="utf-8")


def test_init_writes_what_scan_reads(home, tiny_files, run_cli):
    named = [str(tiny_files / name) for name in ("weights.safetensors", "trusted.npz", "inputs.npz")]
    options = ("--weights", named[0], "--trusted", named[1], "--inputs", named[2], "--fpr", 0.05)
    assert run_cli("init", "--model", "tiny:network", *options)[0] == 0
    code, out, errors = run_cli("scan", "--alone", "--conformal", "split", "--json")
    assert code == 0, errors
    assert json.loads(out)["fpr_target"] == 0.05
    assert (home / "runs" / "first" / "report.html").is_file()
    # What stands on the command line wins.
    code, out, errors = run_cli("check", "--fpr", 0.2)
    assert code == 0
    assert "0.2 is asked for" in out
    assert "model, trusted, weights from covary.toml" in " ".join(errors.split())


def test_init_asks_nobody_where_nobody_is_and_replaces_nothing(home, run_cli):
    code, _, errors = run_cli("init", "--model", "a:b")
    assert code == 2
    assert "--model and --trusted" in " ".join(errors.split())
    assert run_cli("init", "--model", "a:b", "--trusted", "t.npz", "--json")[0] == 0
    code, _, errors = run_cli("init", "--model", "c:d", "--trusted", "t.npz")
    assert code == 2
    assert "there already" in errors
    assert run_cli("init", "--model", "c:d", "--trusted", "t.npz", "--force")[0] == 0
    assert 'model = "c:d"' in (home / config.NAME).read_text("utf-8")


def test_init_asks_for_what_is_missing(home, run_cli, monkeypatch):
    answers = iter(["nets:resnet", "", "good/", "", 0.02])
    monkeypatch.setattr(config, "prompt", lambda *arguments, **options: next(answers))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert run_cli("init")[0] == 0
    assert config.defaults(home / config.NAME, app)["scan"] == {"model": "nets:resnet", "trusted": "good/", "fpr": 0.02}


def test_a_table_is_for_one_command_and_dashes_are_underscores(home):
    write(home, 'inputs = "a.npz"\nbatch-size = 9\n[score]\nbatch_size = 4\n[fit]\nmean = [0.5, 0.25]\n')
    found = config.defaults(home / config.NAME, app)
    assert (found["scan"]["batch_size"], found["score"]["batch_size"]) == (9, 4)
    assert found["fit"]["mean"] == "0.5,0.25"
    assert "mean" not in found["scan"]
    assert found["scan"]["inputs"] == "a.npz"
    assert "inputs" not in found["cost"]  # there it is a number


@pytest.mark.parametrize(
    ("text", "said"),
    [("x = ", "not readable TOML"), ("nothing = 1", "unknown option"), ("[nothing]\na = 1", "unknown table"),
     ("[scan]\nnothing = 1", r"unknown option in \[scan\]"), ("trust_code = true", "says trust_code"),
     ("[score]\ntrust-code = true", "says trust_code"), ("force = true", "says force")],
)  # fmt: skip
def test_what_a_file_may_not_say(home, run_cli, text, said):
    write(home, text)
    with pytest.raises(CovaryError, match=said):
        config.defaults(home / config.NAME, app)
    assert run_cli("inspect", "nothing")[0] == 2
    assert run_cli("--version")[0] == 0


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_told_for_each_shell(shell):
    environment = {**os.environ, "_COVARY_COMPLETE": f"source_{shell}"}
    program = Path(sys.executable).with_name("covary")
    done = subprocess.run([program], env=environment, capture_output=True, text=True)
    assert "_COVARY_COMPLETE" in done.stdout, done.stderr


def test_every_question_is_an_option_of_scan():
    assert set(config.QUESTIONS) <= config._options(app)["scan"]
