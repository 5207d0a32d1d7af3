"""A pile whose partitions were changed: each change is named, nothing is counted, no fresh receipt blesses it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from covary.errors import CovaryError
from covary.serving.pile import duplicates
from covary.serving.pile.output_store import OutputStore
from covary.serving.pile.score import score_pile
from covary.serving.pile.verdicts import read_part, with_flags
from covary.storage import verify
from covary.storage.parts import pack, part_name, unpack
from covary.storage.receipts import write_receipt
from pile_cases import SIZES, X

pa = pytest.importorskip("pyarrow", reason="the extra `ray` is not installed")
pq = pytest.importorskip("pyarrow.parquet")

RECEIPTS = ("receipt.json", "receipt.sha256")


@pytest.fixture(params=["finished", "interrupted"])
def out(request, finished, tmp_path) -> Path:
    """A copy to break, with a receipt or, as an interrupted run leaves it, without."""
    folder = shutil.copytree(finished, tmp_path / "out")
    for name in RECEIPTS if request.param == "interrupted" else ():
        (folder / name).unlink()
    return folder


def refused(saved_folder, pile, out, name) -> str:
    """What a rerun says, which changes no partition and writes no receipt of it."""
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(CovaryError, match=name.replace(".", r"\.")) as problem:
        score_pile(saved_folder, pile, out, **SIZES)
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {key: before[key] for key in before if key.startswith("part")} == {
        key: after[key] for key in after if key.startswith("part")
    }
    assert after.get("receipt.json") == before.get("receipt.json")
    return str(problem.value)


def test_one_flipped_bit_of_a_finished_partition_is_named(saved_folder, pile, out):
    rng = np.random.default_rng(0)
    for trial in range(6):
        name = part_name(trial % 5)
        content = (out / name).read_bytes()
        broken = bytearray(content)
        broken[int(rng.integers(len(broken)))] ^= 1 << int(rng.integers(8))
        (out / name).write_bytes(broken)
        refused(saved_folder, pile, out, name)
        (out / name).write_bytes(content)


def test_every_single_bit_of_a_partition_counts(finished):
    """Not only those of verdicts: three hundred of all, by the reader that every command uses."""
    rng = np.random.default_rng(1)
    content = (finished / part_name(2)).read_bytes()
    unpack(content, part_name(2), "out")
    for place in (0, len(content) - 1, *rng.integers(0, len(content), 300).tolist()):
        broken = bytearray(content)
        broken[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(CovaryError, match=r"part-000002\.parquet of out is damaged"):
            unpack(bytes(broken), part_name(2), "out")
    for broken in (content[:-1], content + b" ", b"", content[1:]):
        with pytest.raises(CovaryError, match="is damaged"):
            unpack(broken, part_name(2), "out")


def test_a_partition_copied_over_another_is_named(saved_folder, pile, out):
    shutil.copy(out / part_name(1), out / part_name(3))
    refused(saved_folder, pile, out, part_name(3))


def test_p_values_written_over_are_named(saved_folder, pile, out):
    """Even where the file is a sound one, with the footer that it had."""
    path = out / part_name(4)
    table = pq.read_table(path)
    kept = pq.ParquetFile(path).metadata.metadata
    table = table.set_column(table.schema.get_field_index("p_value"), "p_value", pa.array(np.ones(len(table))))
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({b"covary": kept[b"covary"]})
    refused(saved_folder, pile, out, part_name(4))


@pytest.mark.parametrize("column", ["id", "score", "predicted", "flagged", "latent", "raised_by"])
def test_the_digest_of_verdicts_covers_every_column(column, finished):
    table, record = read_part(OutputStore(finished), 0)
    values = table[column].to_pylist()
    values[5] = {"id": "another", "raised_by": "nobody"}.get(column) or (not values[5] if column == "flagged" else 7)
    changed = table.set_column(table.schema.get_field_index(column), column, pa.array(values, table[column].type))
    assert unpack(pack(changed, record), part_name(0), "out")[1]["digest"] != record["digest"]
    # A null is not a zero.
    empty = table.set_column(table.schema.get_field_index("latent"), "latent", pa.nulls(len(table), pa.float64()))
    zeros = table.set_column(table.schema.get_field_index("latent"), "latent", pa.array(np.zeros(len(table))))
    assert len({unpack(pack(t, record), "", "")[1]["digest"] for t in (table, empty, zeros)}) == 3


def test_verdicts_on_other_inputs_are_refused_by_their_ids(saved_folder, pile, finished, tmp_path):
    """A partition that is sound in every byte, and of as many inputs, but not of those it should be of."""
    out = shutil.copytree(finished, tmp_path / "out")
    for name in RECEIPTS:
        (out / name).unlink()
    table, record = read_part(OutputStore(out), 1)
    ids = [f"other-{i}" for i in range(len(table))]
    table = table.set_column(0, "id", pa.array(ids))
    (out / part_name(1)).write_bytes(pack(table, record))
    assert "holds verdicts on other inputs" in refused(saved_folder, pile, out, part_name(1))


def test_a_finished_pile_is_first_what_its_receipt_says(saved_folder, pile, finished, tmp_path):
    """A forged partition that fits in every way but the receipt."""
    out = shutil.copytree(finished, tmp_path / "out")
    table, record = read_part(OutputStore(out), 1)
    (out / part_name(1)).write_bytes(pack(with_flags(table, np.zeros(len(table), bool)), record))
    assert "is not what its receipt says" in refused(saved_folder, pile, out, part_name(1))
    (out / part_name(1)).unlink()  # what is missing is done again
    assert score_pile(saved_folder, pile, out, **SIZES)["scored_now"] == 32
    assert verify.receipt_state(out) == "intact"


def test_nothing_of_the_user_s_is_swept_away_or_vouched_for(saved_folder, pile, finished, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.part").write_text("mine")
    with pytest.raises(CovaryError, match=r"holds 'thesis\.part', which is not part of a pile"):
        score_pile(saved_folder, pile, out, **SIZES)
    assert (out / "thesis.part").read_text() == "mine"
    out = shutil.copytree(finished, tmp_path / "other")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(CovaryError, match=r"holds 'notes\.txt', which is not part of a pile"):
        score_pile(saved_folder, pile, out, **SIZES)


@pytest.mark.parametrize("text", ["[]", "3", "{}", "nonsense", '{"format": 2}', "[" * 100_000, "\xff"])
def test_a_plan_that_is_none_is_told_in_one_sentence(text, saved_folder, pile, out):
    (out / "pile.json").write_bytes(text.encode("latin-1"))
    assert "\n" not in refused(saved_folder, pile, out, "out")


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"number": "0"}', '{"number": 0, "plan": 3}', "[" * 100_000])
def test_a_footer_that_holds_no_record_is_told_in_one_sentence(text, finished, monkeypatch):
    table, _ = read_part(OutputStore(finished), 0)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({b"covary": text.encode(), b"x": b'"sha256": "' + b"0" * 64 + b'"'})
    with pytest.raises(CovaryError, match="is damaged") as problem:
        unpack(sink.getvalue(), part_name(0), "out")
    assert "\n" not in str(problem.value)


# Ids -----------------------------------------------------------------------------------------------------------------


def test_an_id_in_two_partitions_is_refused_as_in_an_npz(saved_folder, tmp_path):
    ids = [f"a{i}" for i in range(40)]
    ids[37] = ids[2]
    lines = [json.dumps({"id": name, "x": x.tolist(), "dtype": "uint8"}) for name, x in zip(ids, X[:40], strict=True)]
    (tmp_path / "pile.jsonl").write_text("\n".join(lines))
    with pytest.raises(CovaryError, match=r"id 'a2' occurs in part-000000.parquet and in part-000001.parquet"):
        score_pile(saved_folder, str(tmp_path / "pile.jsonl"), tmp_path / "out", **SIZES)
    assert not (tmp_path / "out" / "summary.json").exists()
    assert not (tmp_path / "out" / "receipt.json").exists()
    ids[37] = ids[36]
    lines = [json.dumps({"id": name, "x": x.tolist(), "dtype": "uint8"}) for name, x in zip(ids, X[:40], strict=True)]
    (tmp_path / "pile.jsonl").write_text("\n".join(lines))
    with pytest.raises(CovaryError, match=r"id 'a36' occurs twice in part-000001.parquet"):
        score_pile(saved_folder, str(tmp_path / "pile.jsonl"), tmp_path / "other", **SIZES)


@pytest.mark.parametrize("at_once", [1, 3, 64, 1 << 20])
def test_repeated_ids_are_found_in_pieces_of_any_size(at_once, monkeypatch):
    monkeypatch.setattr(duplicates, "AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    ids = [str(i) for i in rng.integers(0, 60, 80)] if at_once < 1 << 20 else [str(i) for i in range(500)]
    with duplicates.Repeated() as repeated:
        for start in range(0, len(ids), 7):
            repeated.add(duplicates.hashes(ids[start : start + 7]))
        found = repeated.found()
    again = {name for name in ids if ids.count(name) > 1}
    assert found == set(duplicates.hashes(sorted(again)).tolist())
    place = duplicates.first_repeated([("a", ids[:40]), ("b", ids[40:])], found)
    assert (place is None) == (not again)


def test_equal_hashes_of_different_ids_are_no_repetition(monkeypatch):
    monkeypatch.setattr(duplicates, "hashes", lambda ids: np.zeros(len(ids), np.uint64))
    assert duplicates.first_repeated([("a", ["x", "y"]), ("b", ["z"])], {0}) is None
    assert duplicates.first_repeated([("a", ["x", "y"]), ("b", ["y"])], {0}) == ("y", "a", "b")


def test_a_receipt_made_for_a_pile_with_something_else_in_it_says_so(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "notes.txt").write_text("")
    assert verify.receipt_state(out) == "notes.txt was added"
    write_receipt(out)
    assert verify.receipt_state(out) == "intact"
