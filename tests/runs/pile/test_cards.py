"""Cards of a RUN's pile: in its files, its report and the terminal; and members that are trusted from then on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import pages
import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.runs import scan as scanning
from covary.runs.pile.cards import members, read_cards
from covary.runs.pile.trust import read_ids, trust
from covary.runs.scan import ScanPlan
from covary.storage.fingerprints import digest_file

CLEAN, ODD, SHIFTED = 100, 40, 40


def shifted(x: np.ndarray) -> np.ndarray:
    """Harmless digits of another scanner: half as bright, over a grey ground."""
    return (x // 2 + 90).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tiny_files, tmp_path_factory) -> Path:
    """The tiny digits: clean ones, odd ones, and harmless ones of another scanner."""
    folder = tmp_path_factory.mktemp("cards")
    x = tiny.images()[0]
    pile = x[tiny.TRAINED + tiny.TRUSTED :][: CLEAN + ODD + SHIFTED].copy()
    pile[CLEAN : CLEAN + ODD] = tiny.odd(pile[CLEAN : CLEAN + ODD])
    pile[CLEAN + ODD :] = shifted(pile[CLEAN + ODD :])
    kinds = np.repeat(["clean", "odd", "shifted"], [CLEAN, ODD, SHIFTED])
    np.savez(folder / "inputs.npz", x=pile, id=[f"{kind}-{i}" for i, kind in enumerate(kinds.tolist())])
    return folder


@pytest.fixture(scope="module")
def run(folder, tiny_files) -> Path:
    plan = ScanPlan.checked(
        model="tiny:trained", trusted=str(tiny_files / "trusted.npz"), inputs=str(folder / "inputs.npz"),
        together=True, settings={"fpr": 0.05, "conformal": "split"},
    )  # fmt: skip
    scanning.scan(plan, folder / "run")
    return folder / "run"


def kinds_of(ids: list[str]) -> dict[str, int]:
    kinds = [name.split("-")[0] for name in ids]
    return {kind: kinds.count(kind) for kind in set(kinds)}


def card_of(run: Path, kind: str) -> int:
    """Number of the card that holds most inputs of a kind."""
    cards = read_cards(run)["cards"]
    return max(cards, key=lambda card: kinds_of(card["ids"]).get(kind, 0))["number"]


def verdicts(run: Path) -> dict[str, dict[str, str]]:
    with open(run / "results.csv", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_each_kind_has_a_card_that_a_summary_tells(run):
    summary = json.loads((run / "summary.json").read_text())
    number = card_of(run, "shifted")
    assert number != card_of(run, "odd")
    assert kinds_of(members(run, number))["shifted"] >= 0.8 * SHIFTED
    message = next(card for card in summary["cards"] if card["number"] == number)
    assert "ids" not in message
    assert set(message["typical"]) <= set(members(run, number))
    assert message["n_flagged"] == sum(verdicts(run)[name]["flagged"] == "true" for name in members(run, number))
    assert any("beyond what trusted inputs give" in text for text in summary["statements"])


def test_flagged_inputs_have_a_kind_and_a_shift_is_no_other_mechanism(run):
    cards = {card["number"]: card for card in read_cards(run)["cards"]}
    rows = verdicts(run)
    assert {row["kind"] for row in rows.values() if row["flagged"] == "false" and not row["copy_of"]} == {""}
    assert all(row["kind"] and 0 < float(row["kind_p"]) <= 1 for row in rows.values() if row["flagged"] == "true")
    for number, card in cards.items():
        own = [rows[name] for name in card["ids"]]
        assert {row["card"] for row in own} == {str(number)}
        if card["reading"] == "shift-like":
            assert "another mechanism behind a sure answer" not in {row["kind"] for row in own}


def test_the_report_and_the_terminal_show_the_cards(run, run_cli):
    text = pages.Page(run / "report.html").text
    assert "Cards of the pile" in text
    assert f"--card {card_of(run, 'odd')}" in text
    code, out, _ = run_cli("mechanisms", run, "--trust-code")
    assert code == 0
    assert f"card {card_of(run, 'odd')}, " in out


def test_a_trusted_card_is_flagged_no_more_and_the_rest_is_as_before(run, run_cli):
    number, out = card_of(run, "shifted"), run.parent / "trusted"
    code, _, _ = run_cli("trust", run, "--card", number, "--out", out, "--trust-code")
    assert code == 0
    names, before, after = members(run, number), verdicts(run), verdicts(out)
    assert not any(after[name]["flagged"] == "true" for name in names)
    assert all(after[name]["copy_of"] == f"run/{name}" for name in names)
    odd = [name for name in before if name.startswith("odd")]
    caught = [sum(found[name]["flagged"] == "true" for name in odd) for found in (before, after)]
    assert caught[1] >= caught[0] - 2
    receipt = json.loads((out / "receipt.json").read_text())
    assert receipt["config"]["added"] == [
        {"run": "run", "receipt": digest_file(run / "receipt.json"), "n": len(names), "ids": names}
    ]
    on_cards = {name for card in read_cards(out)["cards"] for name in card["ids"]}
    assert not on_cards & set(names)


def test_what_was_added_is_added_again_by_a_replay_and_kept_by_a_second_addition(run, run_cli):
    out = run.parent / "by-ids"
    file = run.parent / "ids.txt"
    file.write_text("shifted-150\n\nshifted-151\n")
    assert run_cli("trust", run, "--ids", file, "--out", out, "--trust-code")[0] == 0
    code, text, _ = run_cli("scan", "--replay", out, "--out", run.parent / "again", "--trust-code", "--json")
    assert code == 0
    assert json.loads(text)["replay"]["identical"]
    assert run_cli("verify", out, "--sources", "--trust-code")[0] == 0
    trust(out, run.parent / "twice", ids=["shifted-152"], trust_code=True)
    twice = json.loads((run.parent / "twice" / "receipt.json").read_text())["config"]["added"]
    assert [(one["run"], one["n"]) for one in twice] == [("run", 2), ("by-ids", 1)]
    roles = json.loads((run.parent / "twice" / "run.json").read_text())["roles"]
    assert {"run/shifted-150", "by-ids/shifted-152"} <= {name for own in roles.values() for name in own}


def test_inputs_of_a_saved_detector_s_run_can_be_trusted(run, saved_folder):
    data = str(run.parent / "inputs.npz")
    scanning.score(saved_folder, data, run.parent / "scored", trust_code=True)
    summary = trust(run.parent / "scored", run.parent / "scored-more", ids=["odd-101", "odd-102"], trust_code=True)
    assert summary["n_added"] == 2
    after = verdicts(run.parent / "scored-more")
    assert {after[name]["flagged"] for name in ("odd-101", "odd-102")} == {"false"}


def test_a_detector_that_trusts_more_leaves_the_first_one_as_it_is(fitted: Detector):
    x = tiny.inputs()[0][tiny.CLEAN :][:20]
    n, before = len(fitted.trusted_rows), fitted.score(x)
    more = fitted.trust(x, origin="seen")
    assert (len(more.trusted_rows), len(fitted.trusted_rows)) == (n + 20, n)
    assert more.trusted_fingerprint != fitted.trusted_fingerprint
    np.testing.assert_array_equal(fitted.score(x).score, before.score)
    assert not more.score(x).flagged.any()
    assert before.flagged.all()
    with pytest.raises(CovaryError, match="named as trusted ones are"):
        more.trust(x, origin="seen")


def test_cards_are_found_in_python_as_well(fitted: Detector, run):
    found = fitted.find_cards(str(run.parent / "inputs.npz"))
    sizes = [card.members >= CLEAN for card in found.cards]
    assert max(int(odd.sum()) for odd in sizes) >= 0.8 * SHIFTED


def test_a_detector_that_trusts_more_is_saved_whole(fitted: Detector, tmp_path):
    x = tiny.inputs()[0][tiny.CLEAN :][:20]
    more = fitted.trust(x, origin="seen")
    loaded = Detector.load(more.save(tmp_path / "more"), trust_code=True)
    np.testing.assert_array_equal(loaded.score(x).p_value, more.score(x).p_value)


@pytest.mark.parametrize(
    ("query_rows", "match"),
    [
        ({}, "neither card= nor ids="),
        ({"card": 1, "ids": ["a"]}, "both card= and ids="),
        ({"card": 99}, r"card=99 of .*; expected one of its cards: 1"),
        ({"ids": ["nobody"]}, "no input 'nobody'"),
        ({"ids": []}, "no ids"),
    ],
)
def test_what_cannot_be_trusted_is_told(run, query_rows, match, tmp_path):
    with pytest.raises(CovaryError, match=match):
        trust(run, tmp_path / "out", **query_rows, trust_code=True)


def test_runs_without_cards_and_unreadable_ids_are_told(run, tmp_path):
    with pytest.raises(CovaryError, match=r"has no cards\.json"):
        read_cards(tmp_path)
    (tmp_path / "cards.json").write_text('{"cards": [1]}')
    with pytest.raises(CovaryError, match="not as covary writes it"):
        read_cards(tmp_path)
    with pytest.raises(CovaryError, match="cannot be read"):
        read_ids(tmp_path / "nothing")
