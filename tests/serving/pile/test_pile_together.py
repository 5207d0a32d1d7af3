"""A pile in partitions judged together: a run in memory's flags, and its scores to 1e-6; resume, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

import pile_cases
from covary.detector import Detector
from covary.errors import CovaryError
from covary.serving.pile import together, worker
from covary.serving.pile.score import score_pile
from covary.storage.parts import MOMENTS
from covary.storage.verify import receipt_state
from pile_cases import SIZES, X, columns, same

pytest.importorskip("pyarrow", reason="the extra `ray` is not installed")


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def in_memory(saved_folder):
    """What the detector says of the pile with all rows at hand."""
    with worker.limited(1):
        return Detector.load(saved_folder, batch_size=16, trust_code=True).score(X, together=True)


@pytest.fixture(scope="module")
def joined(saved_folder, pile, tmp_path_factory):
    """The pile judged together in partitions; not to be changed."""
    out = tmp_path_factory.mktemp("together") / "out"
    score_pile(saved_folder, pile, out, together=True, **SIZES)
    return out


def test_partitions_judged_together_are_flagged_as_in_memory(joined, in_memory):
    found = columns(joined)
    assert found["id"] == pile_cases.IDS
    assert found["flagged"] == in_memory.flagged.tolist()
    assert found["predicted"] == in_memory.predicted.tolist()
    assert found["kind"] == in_memory.kind
    np.testing.assert_allclose(found["score"], in_memory.score, rtol=1e-6)
    np.testing.assert_allclose(found["p_value"], in_memory.p_value, rtol=1e-12)
    assert "pile functional" in in_memory.parts
    for kind, values in in_memory.parts.items():
        np.testing.assert_allclose(found[kind], values, rtol=1e-6, atol=1e-8)
    summary = json.loads((joined / "summary.json").read_text())
    assert any(statement.startswith("Judged together") for statement in summary["statements"])
    assert json.loads((joined / "pile.json").read_text())["together"] is True


def test_nothing_is_left_of_the_first_pass_but_the_pile_s_moments(joined):
    names = [path.name for path in joined.iterdir() if not path.name.startswith("part-")]
    assert sorted(names) == [MOMENTS, "pile.json", "receipt.json", "receipt.sha256", "summary.json"]
    assert not {"numbers", "copy_distance"} & set(columns(joined))
    assert receipt_state(joined) == "intact"


@pytest.mark.parametrize("dies_in", ["first pass", "moments", "second pass"])
def test_a_killed_run_goes_on_to_the_same_bits(dies_in, saved_folder, pile, joined, tmp_path, monkeypatch):
    out, calls = tmp_path / "out", []
    target = {
        "first pass": (together, "write_moments"), "moments": (together, "added"), "second pass": (together, "judged"),
    }[dies_in]  # fmt: skip
    real = getattr(*target)

    def dying(*arguments):
        calls.append(arguments)
        # `added` is called once for each of five partitions before the partitions themselves are added.
        if len(calls) == (7 if dies_in == "moments" else 3):
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(*target, dying)
    with pytest.raises(Killed):
        score_pile(saved_folder, pile, out, together=True, **SIZES)
    monkeypatch.setattr(*target, real)
    again = score_pile(saved_folder, pile, out, together=True, **SIZES)
    assert again["scored_now"] == (96 if dies_in == "first pass" else 0)
    same(out, joined)
    assert again["verdicts"] == json.loads((joined / "summary.json").read_text())["verdicts"]


def test_a_removed_partition_is_judged_again_and_flags_are_decided_anew(saved_folder, pile, joined, tmp_path):
    out = tmp_path / "out"
    score_pile(saved_folder, pile, out, together=True, fdr=0.5, **SIZES)
    (out / "part-000002.parquet").unlink()
    again = score_pile(saved_folder, pile, out, together=True, **SIZES)
    assert (again["scored_now"], again["n"]) == (32, 160)
    same(out, joined)


def test_what_was_begun_alone_is_not_finished_together(saved_folder, pile, tmp_path):
    out = tmp_path / "out"
    score_pile(saved_folder, pile, out, **SIZES)
    with pytest.raises(CovaryError, match="was begun with together None"):
        score_pile(saved_folder, pile, out, together=True, **SIZES)


def test_damaged_moments_are_named(saved_folder, pile, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(together, "judged", lambda *arguments: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        score_pile(saved_folder, pile, out, together=True, **SIZES)
    content = bytearray((out / MOMENTS).read_bytes())
    content[-1] ^= 1
    (out / MOMENTS).write_bytes(bytes(content))
    with pytest.raises(CovaryError, match=f"{MOMENTS} of .* cannot be read .*not those that were written"):
        score_pile(saved_folder, pile, out, together=True, **SIZES)


def test_the_command_line_judges_partitions_together(run_cli, saved_folder, pile, joined, tmp_path):
    code, _, err = run_cli(
        "score", saved_folder, pile, "--out", tmp_path / "out", "--partition-size", 32, "--batch-size", 16,
        "--trust-code", "--together",
    )  # fmt: skip
    assert (code, err.count("Traceback")) == (0, 0)
    same(tmp_path / "out", joined)
