"""Piles of every kind: how they are cut, what comes out, and what is refused in one sentence."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pile_cases
import tiny
from covary.data.readers import open_reader
from covary.data.source import open_data
from covary.errors import CovaryError
from covary.serving.pile.partitions import cut
from covary.serving.pile.sources import SOURCES, recognise, streamed

pa = pytest.importorskip("pyarrow", reason="the extra `ray` is not installed")


def read(pile, mode="L"):
    """All partitions, read one after another."""
    return [pair for part in pile.parts for pair in SOURCES[pile.kind].read(pile.data, json.loads(part), mode)]


@pytest.mark.parametrize("kind", pile_cases.WRITERS)
@pytest.mark.parametrize("size", [1000, 32, 7])
def test_every_kind_gives_the_same_samples(kind, size, tmp_path):
    pile = cut(pile_cases.WRITERS[kind](tmp_path), size)
    pairs = read(pile)
    ids = [f"shard-{i // 32:03}/{i:03}" for i in range(len(pile_cases.X))] if "tar" in kind else pile_cases.IDS
    assert [name for name, _ in pairs] == ids
    found = np.stack([sample for _, sample in pairs])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pile_cases.X)
    assert pile.stored > 0
    if "tar" in kind:
        assert (len(pile.parts), pile.inputs) == (5, None)
    else:
        assert (len(pile.parts), pile.inputs) == (-(-160 // size), 160)
    assert cut(pile.data, size).digest() == pile.digest()


def test_class_folders_come_in_the_order_of_the_reader(tmp_path):
    for name in ("b/2.png", "b/10.png", "a b/1.png", "a/x/3.png", "a/1.png", ".hidden/1.png", "a/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pile_cases.png(pile_cases.X[0]))
    expected = open_reader(tmp_path).ids
    assert len(expected) == 5
    assert [name for name, _ in read(cut(str(tmp_path), 2))] == expected


def test_colour_and_one_image_alone(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "one.png")
    [(name, image)] = read(cut(str(tmp_path / "one.png")), "RGB")
    assert name == "one.png"
    np.testing.assert_array_equal(image, colours)
    with pytest.raises(CovaryError, match=r"one.png of .* has colours; expected a grey image"):
        read(cut(str(tmp_path)), "L")


def test_tokens_and_floats(tmp_path):
    import pyarrow.parquet as pq

    (tmp_path / "a.jsonl").write_text('{"input_ids": [1, 2, 3]}\n\n{"x": [[0.5, 1], [2, 3]], "id": 7}\n')
    first, second = read(cut(str(tmp_path / "a.jsonl")))
    assert first[0] == "a.jsonl:1"
    assert first[1].dtype == np.int64
    assert second[0] == "7"
    assert second[1].dtype == np.float32
    assert second[1].shape == (2, 2)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12, dtype=np.float32).reshape(2, 2, 3))
    pq.write_table(pa.table({"x": tensors}), tmp_path / "t.parquet")
    (name, x), (_, y) = read(cut(str(tmp_path / "t.parquet"), 1))
    assert name == "t.parquet:0"
    np.testing.assert_array_equal(np.stack([x, y]), np.arange(12).reshape(2, 2, 3))
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(range(6), pa.int32()), 3)
    pq.write_table(pa.table({"input_ids": fixed}), tmp_path / "f.parquet")
    assert [(x.dtype, x.tolist()) for _, x in read(cut(str(tmp_path / "f.parquet")))] == [
        (np.int64, [0, 1, 2]), (np.int64, [3, 4, 5]),
    ]  # fmt: skip


def test_globs_and_several_files(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jsonl").write_text(f'{{"x": [{i}]}}\n' * 5)
    pile = cut(f"{tmp_path}/[01].jsonl", 4)
    assert [json.loads(part)["lines"] for part in pile.parts] == [4, 1, 4, 1]
    assert [x.tolist() for _, x in read(pile)] == [[0]] * 5 + [[1]] * 5
    assert cut(str(tmp_path), 4).inputs == 15


@pytest.mark.parametrize("pattern", ["pile/*.png", "pile/?/*.png", "*/*/*.png", "pile/a/1.png"])
def test_images_by_a_pattern_are_named_as_readers_name_them(pattern, tmp_path):
    for name in ("pile/0.png", "pile/a/1.png", "pile/b/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), int(name[-5]), np.uint8)).save(tmp_path / name)
    pile = cut(f"{tmp_path}/{pattern}", 8)
    found = read(pile)
    assert [name for name, _ in found] == list(open_data(f"{tmp_path}/{pattern}").ids)
    assert [int(x[0, 0]) for _, x in found] == [int(name[-5]) for name, _ in found]


def test_names_that_are_no_utf_8_are_told_alike_in_every_pass(tmp_path):
    image = Image.fromarray(np.zeros((8, 8), np.uint8))
    image.save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    pile = cut(str(tmp_path), 8)
    assert [name for name, _ in read(pile)] == SOURCES["images"].ids(pile.data, json.loads(pile.parts[0]))
    assert read(pile)[0][0] == r"caf\xe9.png"


def test_a_dataset_by_name():
    pile = cut("tiny:dataset", 100)
    assert (pile.kind, pile.inputs, len(pile.parts)) == ("readers", tiny.TRUSTED, 5)
    assert read(pile)[-1][0] == str(tiny.TRUSTED - 1)


def test_what_only_a_pile_can_be(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "images").mkdir()
    yes = ["s3://bucket/a.npz", "pile/*.parquet", "shard-{00..11}.tar", "a.parquet", str(tmp_path), f"{tmp_path}/*"]
    no = ["a.npz", "package.module:dataset", str(tmp_path / "images"), "nothing", "pile/*.png"]
    assert [streamed(spec) for spec in yes + no] == [True] * 6 + [False] * 5


def tar_of(path: Path, names: list[str]) -> None:
    import io

    with tarfile.open(path, "w") as tar:
        for name in names:
            blob = pile_cases.png(pile_cases.X[0])
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))


def bad_piles(folder: Path):
    """Names of bad piles, how each is made, and what is said of it."""
    import pyarrow.parquet as pq

    def parquet(**columns):
        pq.write_table(pa.table(columns), folder / "a.parquet")

    def text(name, content):
        (folder / name).write_bytes(content)

    def loose():
        (folder / "c").mkdir()
        for name in ("a.png", "c/b.png"):
            text(name, pile_cases.png(pile_cases.X[0]))

    def cut_short():
        tar_of(folder / "a.tar", ["1.png", "2.png"])
        text("a.tar", (folder / "a.tar").read_bytes()[:700])

    return {
        "nothing": (lambda: None, "nothing at"),
        "other files": (lambda: text("a.txt", b"x"), "holds files such as a.txt; expected a folder of images"),
        "two kinds": (lambda: (text("a.png", b"x"), text("a.jsonl", b"{}")), "holds images and jsonl"),
        "loose images": (loose, r"holds images \(a.png, ...\) as well as folders"),
        "broken image": (lambda: text("a.png", b"x"), "a.png of .* cannot be read as an image"),
        "deep image": (lambda: Image.fromarray(np.zeros((8, 8), np.int32)).save(folder / "a.tif"), "32 bits"),
        "no column": (lambda: parquet(a=[1]), "has the columns a; expected one of: x, image"),
        "null": (lambda: parquet(x=pa.array([None], pa.list_(pa.float32()))), "is null"),
        "null within": (lambda: parquet(x=[[1.0, None]]), "holds nulls"),
        "text": (lambda: parquet(x=["a"]), "is of type string"),
        "ragged": (lambda: parquet(x=[[[1.0], [1.0, 2.0]]]), r"lists of \[1, 2\] numbers"),
        "no parquet": (lambda: text("a.parquet", b"PAR1"), "cannot be read as parquet"),
        "no rows": (lambda: parquet(x=pa.array([], pa.list_(pa.float32()))), "is empty"),
        "no JSON": (lambda: text("a.jsonl", b"{"), "line a.jsonl:1 is no JSON"),
        "a number": (lambda: text("a.jsonl", b"1"), "line a.jsonl:1 holds int"),
        "no input": (lambda: text("a.jsonl", b'{"a": 1}'), "line a.jsonl:1 holds a; expected an object with one of"),
        "ragged JSON": (lambda: text("a.jsonl", b'{"x": [[1], [1, 2]]}'), "holds no array of numbers"),
        "words": (lambda: text("a.jsonl", b'{"x": "what?"}'), "'x' of line a.jsonl:1 is text"),
        "no tar": (lambda: text("a.tar", b"x" * 600), "cannot be read as tar"),
        "short tar": (cut_short, "cannot be read as tar"),
        "no member": (lambda: tar_of(folder / "a.tar", ["1.png", "2.cls", "3.png"]), "'2' of .* has neither an image"),
        "last member": (lambda: tar_of(folder / "a.tar", ["d/1.png", "d/2.cls"]), "'d/2' of .* has neither an image"),
    }


@pytest.mark.parametrize("bad", bad_piles(Path()))
def test_bad_piles_are_refused_in_one_sentence(bad, tmp_path):
    make, said = bad_piles(tmp_path)[bad]
    make()
    with pytest.raises(CovaryError, match=said):
        read(cut(str(tmp_path)))


def test_urls_nobody_knows():
    for url, said in (("nowhere://a", "cannot be opened"), (f"zip://::file://{Path(__file__)}", "cannot be opened")):
        with pytest.raises(CovaryError, match=said):
            recognise(url)


def test_every_kind_has_a_word_of_help():
    assert list(SOURCES) == ["images", "parquet", "jsonl", "webdataset", "readers"]
    assert all(kind.help for kind in SOURCES.values())


def test_hidden_files_are_skipped_at_every_depth_and_the_rest_is_counted_and_named(tmp_path):
    for name in ("cat/a.png", "dog/b.tif", "cat/.ipynb_checkpoints/a.png", "__MACOSX/a.png", "dog/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pile_cases.png(pile_cases.X[0]))
    (tmp_path / "dog" / "._b.tif").write_bytes(b"\x00")
    pile = cut(str(tmp_path))
    assert [name for name, _ in read(pile)] == ["cat/a.png", "dog/b.tif"]
    assert {left.kind: left.names for left in pile.left_out if "hidden" not in left.kind} == {
        "files that hold no images": ["notes.txt"]
    }
    assert [len(left.names) for left in pile.left_out if "hidden" in left.kind] == [3]
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / ".a.png").write_bytes(b"")
    with pytest.raises(CovaryError, match="hidden files alone"):
        cut(str(tmp_path / "only"))
    # A folder that somebody names is read, whatever its own name.
    assert [name for name, _ in read(cut(str(tmp_path / "cat" / ".ipynb_checkpoints")))] == ["a.png"]
