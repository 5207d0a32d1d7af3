"""`covary guard`: prompts from a file, an option or stdin; what is shown, what is refused, exit codes."""

from __future__ import annotations

import io
import json

import pytest

import texts
from covary.detector import Detector

ODD = " ".join(["wolf"] * 30)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A saved detector of a language model and a guard that was kept, by way of the command."""
    folder = tmp_path_factory.mktemp("guarded")
    model = texts.saved(folder / "model")
    fitted = Detector(model, max_new_tokens=4, judge="answer", fpr=0.1).fit(texts.records(44))
    fitted.save(folder / "detector")
    return folder


@pytest.fixture
def run(place, run_cli):
    return lambda *arguments: run_cli("guard", place / "detector", "--keep", place / "guard", *arguments)


def test_a_clean_prompt_and_an_odd_one(run, place):
    code, out, errors = run("--prompt", texts.records(1, 7)[0]["prompt"], "--json")
    assert code == 0, errors
    found = json.loads(out)
    (one,) = found["answers"]
    assert (one["looks"][0]["tokens"], one["flagged"], found["n_flagged"]) == (0, False, 0)
    assert one["finish"] in ("stop", "length")
    assert "44 trusted answers" in found["statements"][-1]
    assert (place / "guard" / "guard.json").is_file()
    code, out, errors = run("--prompt", ODD, "--json", "--fail-on-flag")
    (one,) = json.loads(out)["answers"]
    assert (code, one["flagged"], one["answer"], one["finish"]) == (1, True, "", "flagged")


def test_lines_of_stdin_are_answered_and_shown(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{texts.records(1, 7)[0]['prompt']}\n\n{ODD}\n"))
    code, out, _ = run("--policy", "mark")
    clean, odd = out.splitlines()
    assert code == 0
    assert clean.startswith("0 [prompt: p = ")
    assert clean.endswith(("[length]", "[stop]"))
    assert odd.startswith("1 [prompt: p = 0.02")


def test_answers_that_are_there_are_watched_as_if_they_were_written(run, tmp_path):
    file = tmp_path / "said.jsonl"
    file.write_text(json.dumps({**texts.records(1, 7)[0], "completion": " gold wood eagle"}) + "\n")
    code, out, errors = run(file, "--json", "--policy", "log")
    assert code == 0, errors
    assert json.loads(out)["answers"][0]["answer"].split() == ["gold", "wood", "eagle"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("x.jsonl", "--prompt", "a"), "DATA and --prompt"),
        (("--prompt", "a", "--policy", "log"), "--policy log without --log"),
        (("--prompt", "a", "--policy", "loud"), "policy is 'loud'"),
        (("--prompt", "a", "--false-stop-rate", "2"), "a false-stop rate of 2.0"),
        (("--prompt", "a", "--every", "5"), "expected every 5; leave --every away"),
        (("--prompt", "a", "--log", "/no/such/folder/log"), "cannot be written"),
        (("none.jsonl",), "nothing at none.jsonl"),
    ],
)
def test_what_is_refused(run, arguments, sentence):
    code, out, errors = run(*arguments)
    assert (code, out) == (2, "")
    assert sentence in " ".join(errors.split())
