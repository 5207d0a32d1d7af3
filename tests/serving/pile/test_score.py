"""A pile scored partition by partition in this process: verdicts to the bit, resume, the second pass, refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import fsspec
import numpy as np
import pytest

import pile_cases
import tiny
from covary.detector import Detector
from covary.errors import CovaryError
from covary.scoring.judge import Verdicts
from covary.serving.pile import worker
from covary.serving.pile.output_store import OutputStore
from covary.serving.pile.score import score_pile
from covary.serving.pile.verdicts import COLUMNS, MORE_COLUMNS, read_part
from covary.storage.locks import temporary
from covary.storage.parts import part_name
from pile_cases import SIZES, X, columns, same

pytest.importorskip("pyarrow", reason="the extra `ray` is not installed")



class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def verdicts(saved_folder) -> Verdicts:
    """What the detector says of the same inputs in batches of the same boundaries."""
    with worker.limited(1):
        return Detector.load(saved_folder, batch_size=16, trust_code=True).score(X)


def test_verdicts_are_the_detectors_to_the_bit(finished, verdicts):
    found = columns(finished)
    assert list(found) == [*COLUMNS, *verdicts.parts, *MORE_COLUMNS]
    assert found["id"] == pile_cases.IDS
    for name in ("score", "p_value", "flagged", "predicted"):
        assert found[name] == getattr(verdicts, name).tolist(), name
    for name in verdicts.parts:
        assert found[name] == verdicts.parts[name].tolist()
    assert found["raised_by"] == verdicts.raised_by
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["n"], summary["n_flagged"]) == (160, int(verdicts.flagged.sum()))
    assert (summary["partitions"], summary["scored_now"]) == (5, 160)
    others = ["pile.json", "receipt.json", "receipt.sha256", "summary.json"]
    names = [f"part-00000{i}.parquet" for i in range(5)] + others
    assert sorted(path.name for path in finished.iterdir()) == names


def test_copies_name_the_trusted_input_that_they_are_of(saved_folder, tmp_path):
    x, _ = tiny.trusted()
    np.savez(tmp_path / "pile.npz", x=np.concatenate([X[:3], x[[7, 30]]]), id=list("abcde"))
    summary = score_pile(saved_folder, str(tmp_path / "pile.npz"), tmp_path / "out", **SIZES)
    found = columns(tmp_path / "out")
    assert found["copy_of"] == ["", "", "", "7", "30"]
    assert found["flagged"][3:] == [False, False]
    assert summary["n_copies"] == 2
    assert any("2 of 5 inputs are copies of trusted ones" in statement for statement in summary["statements"])


@pytest.mark.parametrize("kind", ["zip", "encoded parquet", "jsonl", "tar"])
def test_every_kind_gets_the_same_verdicts(kind, saved_folder, finished, tmp_path):
    score_pile(saved_folder, pile_cases.WRITERS[kind](tmp_path), tmp_path / "out", **SIZES)
    a, b = columns(finished), columns(tmp_path / "out")
    assert list(a) == list(b)
    for name in a.keys() - {"id"}:
        assert a[name] == b[name], name


@pytest.mark.parametrize("kill_at", [0, 2, 4])
def test_a_killed_run_goes_on_where_it_was(kill_at, saved_folder, pile, finished, tmp_path, monkeypatch):
    out, done = tmp_path / "out", []

    def on_partition(record):
        done.append(record["number"])
        if len(done) == kill_at:
            raise Killed

    def dying(place, table, record):
        if len(done) == kill_at - 1 or kill_at == 0:
            place.fs.makedirs(place.root, exist_ok=True)
            temporary(Path(place.path(part_name(record["number"])))).write_bytes(b"half")
            raise Killed
        write(place, table, record)

    write = worker.write_part
    if kill_at != 2:  # in the middle of writing, or between two partitions
        monkeypatch.setattr(worker, "write_part", dying)
    with pytest.raises(Killed):
        score_pile(saved_folder, pile, out, on_partition=on_partition, **SIZES)
    monkeypatch.undo()
    assert not (out / "summary.json").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert len(before) == {0: 0, 2: 2, 4: 3}[kill_at]
    summary = score_pile(saved_folder, pile, out, **SIZES)
    assert summary["resumed_partitions"] == len(before)
    assert summary["scored_now"] == 160 - 32 * len(before)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not [path for path in out.iterdir() if path.suffix == ".part"]
    same(out, finished)
    assert 0 < summary["processor_seconds_per_input"] < 1
    assert summary["verdicts"] == json.loads((finished / "summary.json").read_text())["verdicts"]


def test_fdr_is_decided_over_the_whole_pile_without_scoring_again(saved_folder, pile, verdicts, tmp_path):
    out = tmp_path / "out"
    for i, fdr in enumerate((None, 0.2, 0.05, None)):
        summary = score_pile(saved_folder, pile, out, fdr=fdr, **SIZES)
        expected = verdicts.flagged if fdr is None else verdicts.with_fdr(fdr).flagged
        assert columns(out)["flagged"] == expected.tolist()
        assert summary["n_flagged"] == int(expected.sum())
        assert summary["resumed_partitions"] == (5 if i else 0)
        assert columns(out)["p_value"] == verdicts.p_value.tolist()
        assert ("Benjamini" in summary["rule"]) == (fdr is not None)
    assert 0 < verdicts.with_fdr(0.2).flagged.sum() < 160


def test_a_second_pass_that_was_killed_is_done_again(saved_folder, pile, verdicts, tmp_path, monkeypatch):
    from covary.serving.pile import passes

    out, written = tmp_path / "out", []
    write = passes.write_part

    def dying(*arguments):
        if len(written) == 2:
            raise Killed
        written.append(write(*arguments))

    monkeypatch.setattr(passes, "write_part", dying)
    with pytest.raises(Killed):
        score_pile(saved_folder, pile, out, fdr=0.2, **SIZES)
    monkeypatch.undo()
    assert not (out / "summary.json").exists()
    score_pile(saved_folder, pile, out, fdr=0.2, **SIZES)
    assert columns(out)["flagged"] == verdicts.with_fdr(0.2).flagged.tolist()


def test_results_in_a_url(saved_folder, pile, finished):
    summary = score_pile(saved_folder, pile, "memory://pile-out", **SIZES)
    place = OutputStore("memory://pile-out")
    assert place.names() == [*[part_name(i) for i in range(5)], "pile.json", "summary.json"]
    for i in range(5):
        one, other = read_part(place, i), read_part(OutputStore(finished), i)
        assert one[0].equals(other[0])
    assert json.loads(place.read("summary.json"))["verdicts"] == summary["verdicts"]
    again = score_pile(saved_folder, pile, "memory://pile-out", fdr=0.2, **SIZES)
    assert again["resumed_partitions"] == 5
    fsspec.filesystem("memory").rm("/pile-out", recursive=True)


def test_one_plan_an_out(saved_folder, pile, finished, tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, x=X[:50])
    for change, said in (
        ({"partition_size": 16}, "was begun with partition"),
        ({"batch_size": 8}, "was begun with batch_size 16; expected 8"),
        ({"threads": 2}, "was begun with threads 1"),
        ({"data": str(other)}, "was begun with data"),
    ):
        with pytest.raises(CovaryError, match=said):
            score_pile(saved_folder, **{"data": pile, "out": finished, **SIZES, **change})
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(CovaryError, match=r"holds '(mine.txt|other.npz)', which is not part of a pile"):
        score_pile(saved_folder, pile, tmp_path, **SIZES)
    with pytest.raises(CovaryError, match="is a file"):
        score_pile(saved_folder, pile, tmp_path / "mine.txt", **SIZES)
    for wrong, said in (({"fdr": 1.5}, "fdr= is 1.5"), ({"actors": 0}, "actors= is 0")):
        with pytest.raises(CovaryError, match=said):
            score_pile(saved_folder, pile, tmp_path / "new", **wrong, trust_code=True)


def test_a_damaged_partition_is_named(saved_folder, pile, tmp_path):
    out = tmp_path / "out"
    score_pile(saved_folder, pile, out, **SIZES)
    path = out / part_name(3)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CovaryError, match=r"part-000003\.parquet was changed .*; remove that file and run the same"):
        score_pile(saved_folder, pile, out, **SIZES)
    path.unlink()
    assert score_pile(saved_folder, pile, out, **SIZES)["scored_now"] == 32


def test_a_broken_input_is_named_and_what_is_done_stays_done(saved_folder, finished, tmp_path):
    data = pile_cases.write_images(tmp_path)
    good = (tmp_path / "images" / "070.png").read_bytes()
    (tmp_path / "images" / "070.png").write_bytes(b"no image" * (len(good) // 8 + 1))
    with pytest.raises(CovaryError, match=r"070.png of .* cannot be read as an image"):
        score_pile(saved_folder, data, tmp_path / "out", **SIZES)
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 2
    (tmp_path / "images" / "070.png").write_bytes(good)
    summary = score_pile(saved_folder, data, tmp_path / "out", **SIZES)
    assert (summary["resumed_partitions"], summary["n"]) == (2, 160)
    same(tmp_path / "out", finished)


def test_the_command_line(run_cli, saved_folder, pile, finished, verdicts, tmp_path):
    usual = ["score", "--trust-code", saved_folder, pile, "--out", tmp_path / "out"]
    code, out, err = run_cli(*usual, "--partition-size", 32, "--batch-size", 16, "--fail-on-flag")
    assert (code, err) == (1, "")
    assert out.startswith(f"{int(verdicts.flagged.sum())} of 160 inputs flagged")
    same(tmp_path / "out", finished)
    data = pile_cases.write_parquet(tmp_path)
    code, out, err = run_cli("score", "--trust-code", saved_folder, data, "--out", tmp_path / "p", "--json")
    assert (code, err, json.loads(out)["partitions"]) == (0, "", 1)
    code, _, err = run_cli(*usual, "--partition-size", 32, "--truth", "truth")
    assert (code, "--truth with partitions" in err) == (2, True)
    code, _, err = run_cli("score", "--trust-code", saved_folder, pile, "--out", tmp_path / "run", "--batch-size", 16)
    assert code == 0
    with open(tmp_path / "run" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["flagged"] == "true" for row in rows] == columns(finished)["flagged"]


def test_what_is_left_out_is_in_the_summary(saved_folder, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "notes.txt", ".b.png"):
        (folder / name).write_bytes(pile_cases.png(X[0]))
    summary = score_pile(saved_folder, str(folder), tmp_path / "out", trust_code=True)
    assert summary["n"] == 1
    assert [left["n"] for left in summary["left_out"]] == [1, 1]
    assert any("notes.txt" in statement for statement in summary["statements"])


def test_fields_that_partitions_cannot_carry_are_refused(tmp_path, monkeypatch):
    from torch import nn

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 8), nn.Linear(8, 2)

        def forward(self, input_ids, attention_mask):
            return self.head((self.embedding(input_ids) * attention_mask.unsqueeze(-1)).mean(1))

    (tmp_path / "masked_texts.py").write_text(
        "import torch\n"
        "items = [{'input_ids': torch.arange(i, i + 4) % 9, 'attention_mask': torch.ones(4, dtype=int)}\n"
        "         for i in range(40)]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    detector = Detector(Masked(), fpr=0.1).fit("masked_texts:items")
    job = worker.Job(
        out=str(tmp_path), plan="", data="masked_texts:items", kind="readers", detector="", model=None, weights=None,
        device="cpu", batch_size=8, threads=1, rule="p <= 0.1",
    )  # fmt: skip
    with pytest.raises(CovaryError, match="attention_mask beside the inputs"):
        worker.Scorer(job, detector)
