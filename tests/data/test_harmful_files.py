"""Files made by people who mean harm: one sentence each, no traceback, nothing that hangs or runs."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from covary.data.readers import npz, open_reader
from covary.data.readers.base import LONGEST_ID, checked_ids
from covary.data.truth import truth_column
from covary.errors import CovaryError
from covary.runs.folder.cells import from_cell, to_cell
from covary.serving.pile.output_store import files_at
from covary.serving.pile.sources.values import decoded

GOOD = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)


def npy(array: np.ndarray, header: str | None = None) -> bytes:
    """An array as .npy, or the same bytes behind another header."""
    file = io.BytesIO()
    np.save(file, array)
    if header is None:
        return file.getvalue()
    text = header.encode("latin-1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + array.tobytes()


def write(path, members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(path)


def header(shape: str, descr: str = "|u1") -> str:
    return f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"


HEADERS = {
    "negative": header("(-3, 4, 4)"),
    "negative twice": header("(-3, -4, 4)"),
    "too large": header(f"({2**40}, 4, 4)"),
    "too small": header("(2, 4, 4)"),
    "beyond 64 bits": header(f"({2**70},)"),
    "not numbers": header("('a',)"),
    "no tuple": header("3"),
    "unclosed": "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 4, 4",
    "unclosed text": "{'descr': '|u1",
    "deep": "(" * 5000,
    "code": "__import__('os').abort()",
    "no dtype": header("(3, 4, 4)", "nonsense"),
    "objects": header("(3, 4, 4)", "|O"),
    "another key": "{'descr': '|u1'}",
    "zeros": "\x00" * 40,
    "empty": "",
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_lie(kind, compression, tmp_path, run_cli, saved_folder):
    path = write(tmp_path / "x.npz", {"x.npy": npy(GOOD, HEADERS[kind])}, compression)
    with pytest.raises(CovaryError, match=r"x\.npz") as problem:
        open_reader(path)
    assert "\n" not in str(problem.value)


def test_an_intact_header_is_read(tmp_path):
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = write(tmp_path / "x.npz", {"x.npy": npy(GOOD, header("(3, 4, 4)"))}, compression)
        assert np.array_equal(np.stack(open_reader(path).read(np.arange(3))), GOOD)
    np.savez(tmp_path / "fortran.npz", x=np.asfortranarray(GOOD), y=np.arange(3), id=np.array(["a", "b", "c"]))
    reader = open_reader(str(tmp_path / "fortran.npz"))
    assert np.array_equal(np.stack(reader.read(np.arange(3))), GOOD)
    assert reader.ids == ["a", "b", "c"]


def test_members_that_are_none(tmp_path):
    for members, said in (
        ({"x": npy(GOOD)}, r"no array 'x' \(it holds x \(no \.npy\)\)"),
        ({"x.npy": b""}, "cannot be read as .npz"),
        ({"x.npy": b"PK"}, "cannot be read as .npz"),
        ({"x.npy": npy(GOOD)[:70]}, "cannot be read as .npz|says that it is of shape"),
        ({"x.npy": npy(GOOD), "id.npy": npy(np.array(["a"])), "id": b"x"}, "3 inputs and 1 ids"),
        ({"y.npy": npy(GOOD)}, "no array 'x'"),
    ):
        with pytest.raises(CovaryError, match=said) as problem:
            open_reader(write(tmp_path / "x.npz", members))
        assert "\n" not in str(problem.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_is_there_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", npy(GOOD))
        archive.writestr("x.npy", npy(255 - GOOD))
    with pytest.raises(CovaryError, match="two arrays 'x'"):
        open_reader(str(tmp_path / "x.npz"))


def test_encrypted_members_and_other_compressions(tmp_path):
    path = write(tmp_path / "x.npz", {"x.npy": npy(GOOD)})
    content = bytearray((tmp_path / "x.npz").read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(CovaryError, match="is encrypted"):
        open_reader(path)
    with pytest.raises(CovaryError, match="is compressed by method 12"):
        open_reader(write(tmp_path / "x.npz", {"x.npy": npy(GOOD)}, zipfile.ZIP_BZIP2))


def test_what_claims_to_hold_more_than_it_can(tmp_path):
    """A directory of a zip file that lies about sizes: refused before memory is asked for."""
    path = write(tmp_path / "x.npz", {"x.npy": npy(GOOD, header("(64, 1024, 1024)"))}, zipfile.ZIP_DEFLATED)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(signature) + offset
        content[at : at + 4] = struct.pack("<I", 128 + 64 * 1024 * 1024)
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(CovaryError, match=r"says that \d+ bytes hold 67108992"):
        open_reader(path)


def test_every_flipped_byte_of_an_npz_is_read_or_told_in_one_sentence(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=GOOD, y=np.arange(3), id=np.array(["a", "b", "c"]))
    np.savez(tmp_path / "b.npz", x=GOOD, y=np.arange(3), id=np.array(["a", "b", "c"]))
    rng = np.random.default_rng(0)
    for name in ("a.npz", "b.npz"):
        full = (tmp_path / name).read_bytes()
        for place in rng.integers(0, len(full), 150).tolist():
            broken = bytearray(full)
            broken[place] ^= 1 << int(rng.integers(8))
            (tmp_path / "broken.npz").write_bytes(broken)
            with contextlib.suppress(CovaryError):
                reader = open_reader(str(tmp_path / "broken.npz"))
                reader.read(np.arange(len(reader.ids)))


def test_a_torn_stream_is_told(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", x=GOOD)
    monkeypatch.setattr(np, "load", lambda *_, **__: (_ for _ in ()).throw(zlib.error("torn")))
    with pytest.raises(CovaryError, match="torn"):
        npz.read_array(tmp_path / "x.npz", "x")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"id,truth\n" + b"a" * 200_000 + b",1\n", b"", b"id\n1\n", b"truth\nx\n"]
)
def test_a_table_of_truth_that_is_none(content, tmp_path):
    (tmp_path / "truth.csv").write_bytes(content)
    with pytest.raises(CovaryError, match=r"truth\.csv") as problem:
        truth_column(tmp_path / "truth.csv", ["a"])
    assert "\n" not in str(problem.value)


# Ids -----------------------------------------------------------------------------------------------------------------


def test_ids_that_cannot_be_written(tmp_path, run_cli, saved_folder):
    for name, said in (("\ud800", r"'\\ud800' of x cannot be written as UTF-8"), ("a" * 200_000, "200,000 characters")):
        with pytest.raises(CovaryError, match=said):
            checked_ids([name, "b"], 2, "x")
    assert checked_ids(["a" * LONGEST_ID], 1, "x") == ["a" * LONGEST_ID]
    x = np.zeros((2, 8, 8), np.uint8)
    for i, name in enumerate(("\ud800", "a" * 200_000)):
        np.savez(tmp_path / f"{i}.npz", x=x, id=np.array([name, "b"]))
        code, _, err = run_cli("score", "--trust-code", saved_folder, tmp_path / f"{i}.npz", "--out", tmp_path / "out")
        assert (code, err.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    ["", "cat.png", "-3", "+1e5", "=HYPERLINK(\"http://x\")", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1",
     "'", "''", "'=1", "''=1", "'-3", "it's", "=", "-", "- a", "-inf", "\t3"],
)  # fmt: skip
def test_cells_are_read_back_as_what_they_were(text):
    assert from_cell(to_cell(text)) == text
    assert not to_cell(text).startswith(("=", "@", "\t", "\r"))
    if to_cell(text).startswith(("+", "-")):
        float(to_cell(text))


def test_ids_that_a_spreadsheet_would_run_are_text_in_results_and_themselves_in_json(run_cli, saved_folder, tmp_path):
    import json

    ids = ['=HYPERLINK("http://evil","click")', "@SUM(1)", "+1+1", "'quoted", "-1"]
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8), id=np.array(ids))
    run = tmp_path / "run"
    assert run_cli("score", "--trust-code", saved_folder, tmp_path / "x.npz", "--out", run)[0] == 0
    text = (run / "results.csv").read_text()
    assert "'=HYPERLINK" in text
    assert all(line[:1] not in "=@+" and line[:2] not in ('"=', '"@', '"+') for line in text.splitlines())
    message = json.loads((run / "report.json").read_text())
    assert {card["id"] for part in ("flagged", "clean_examples") for card in message[part]} <= set(ids)
    code, out, _ = run_cli("compare", run, run, "--by-id", "--json")
    assert (code, json.loads(out)["matched"]) == (0, 5)
    from covary.runs.report.run_folder import read_run

    assert read_run(run).results.ids == ids


# What is no image, and no file ---------------------------------------------------------------------------------------


def png(path) -> None:
    Image.fromarray(GOOD[0]).save(path, "png")


def irregular(folder, kind) -> str:
    """Puts something that is no file beside an image, and says what a refusal has to call it."""
    folder.mkdir()
    png(folder / "a.png")
    if kind == "pipe":
        os.mkfifo(folder / "z.png")
        return "z.png is a named pipe"
    to = {"device": "/dev/zero", "nowhere": "/nowhere", "pipe's link": str(folder / "p")}
    (folder / "z.png").symlink_to(to[kind])
    if kind == "pipe's link":
        os.mkfifo(folder / "p")
    return {"device": "z.png is a link to a device", "nowhere": "z.png is a link that leads nowhere"}.get(
        kind, "a link to a named pipe"
    )


@pytest.mark.parametrize("kind", ["pipe", "device", "nowhere", "pipe's link"])
def test_what_is_no_file_is_named_and_nothing_waits_for_it(kind, tmp_path, run_cli, saved_folder):
    said = irregular(tmp_path / "images", kind)
    score = ["score", "--trust-code", saved_folder, tmp_path / "images", "--out", tmp_path / "out"]
    for more in ([], ["--partition-size", 8]):
        code, _, err = run_cli(*score, *more)
        assert (code, err.count("\n")) == (2, 1)
        # A pile names whichever comes first.
        assert said in err or (more and "named pipe" in err)
    assert not (tmp_path / "out").exists()


def test_a_pile_follows_links_to_files_as_a_folder_does(tmp_path):
    (tmp_path / "images").mkdir()
    png(tmp_path / "real.png")
    png(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.png").symlink_to(tmp_path / "real.png")
    assert open_reader(str(tmp_path / "images")).ids == ["a.png", "b.png"]
    found = files_at(str(tmp_path / "images"))
    assert [name.rsplit("/", 1)[-1] for name, _ in found] == ["a.png", "b.png"]
    assert found[0][1] == found[1][1] == (tmp_path / "real.png").stat().st_size
    (tmp_path / "images" / "c").symlink_to(tmp_path)
    with pytest.raises(CovaryError, match="is a link to a folder"):
        files_at(str(tmp_path / "images"))


def test_postscript_that_is_called_an_image_starts_no_other_program(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: started.append(a))
    (tmp_path / "images").mkdir()
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (tmp_path / "images" / "a.png").write_bytes(postscript)
    with pytest.raises(CovaryError, match="cannot be read as an image"):
        open_reader(str(tmp_path / "images"))
    with pytest.raises(CovaryError, match="cannot be read as an image"):
        decoded((tmp_path / "images" / "a.png").read_bytes(), "a.png", "RGB")
    assert started == []


@pytest.mark.parametrize("kind", ["png", "gif", "bmp", "tiff", "webp", "jpeg"])
def test_flipped_bytes_of_images_are_read_or_told_in_one_sentence(kind):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(file, kind)
    rng, full = np.random.default_rng(1), file.getvalue()
    for _ in range(60):
        broken = bytearray(full)
        for place in rng.integers(0, len(full), 3):
            broken[place] = int(rng.integers(256))
        with contextlib.suppress(CovaryError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decoded(bytes(broken), "a", "RGB")


def test_pipes_in_the_place_of_an_npz_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(CovaryError):
        open_reader(str(tmp_path / "x.npz"))
