"""Folders on disk: whole or not at all, and every damaged byte is noticed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from covary.detector import Detector
from covary.errors import CovaryError
from covary.storage import detector as saved
from covary.storage import folders
from covary.storage.receipts import write_receipt


def write_one(folder, kind="detector", content=b"{}"):
    with folders.atomic_folder(folder, kind) as part:
        (part / folders.FILES[kind][0]).write_bytes(content)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


# Whole or not at all -------------------------------------------------------------------------------------------------


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path):
    folder = tmp_path / "a" / "b"
    with folders.atomic_folder(folder, "detector") as part:
        (part / "detector.json").write_text("{}")
        assert not folder.exists()
    assert names(folder) == ["detector.json"]
    assert names(tmp_path / "a") == ["b"]


@pytest.mark.parametrize("problem", [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_whatever_goes_wrong_leaves_the_old_one(tmp_path, problem):
    write_one(tmp_path / "x", content=b"old")

    def go_wrong():
        with folders.atomic_folder(tmp_path / "x", "detector") as part:
            (part / "detector.json").write_bytes(b"new")
            raise problem

    with pytest.raises((type(problem), CovaryError)):
        go_wrong()
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "detector.json").read_bytes() == b"old"


def test_a_rename_that_fails_puts_the_old_one_back(tmp_path, monkeypatch):
    write_one(tmp_path / "x", content=b"old")
    rename = type(tmp_path).rename

    def refuse(self, target):
        if self.name.endswith(".part"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", refuse)
    with pytest.raises(CovaryError, match="Input/output error"):
        write_one(tmp_path / "x", content=b"new")
    monkeypatch.undo()
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "detector.json").read_bytes() == b"old"


def test_an_earlier_result_is_replaced(tmp_path):
    write_one(tmp_path / "x", content=b"old")
    write_one(tmp_path / "x", content=b"new")
    assert (tmp_path / "x" / "detector.json").read_bytes() == b"new"


def test_nothing_that_covary_did_not_write_is_replaced(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    write_one(mine, content=b"into an empty folder")
    (mine / "notes.txt").write_text("dear diary")
    with pytest.raises(CovaryError, match=r"holds 'notes.txt', which is not part of a detector"):
        write_one(mine)
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights.safetensors").write_text("my network")
    with pytest.raises(CovaryError, match=r"has no detector.json"):
        write_one(model)
    with pytest.raises(CovaryError, match="which is not part of a RUN"):
        write_one(mine.parent / "model", "RUN")
    (tmp_path / "file").write_text("")
    with pytest.raises(CovaryError, match="file is a file"):
        write_one(tmp_path / "file")
    write_one(tmp_path / "detector")
    with pytest.raises(CovaryError, match="a new folder, or a RUN to be replaced"):
        write_one(tmp_path / "detector", "RUN")
    assert names(model) == ["weights.safetensors"]


def test_every_kind_that_is_written_is_known():
    root = Path(__file__).parents[2]
    calls = [
        kind
        for path in [*(root / "src").rglob("*.py"), *(root / "bench" / "src").rglob("*.py")]
        for kind in re.findall(
            r"(?:atomic_folder|check_replaceable|reserved)\(\w+(?:\(\w+\))?, (?:kind\b|\"([^\"]+)\")", path.read_text()
        )
    ]
    written = {kind for kind in calls if kind}
    assert {"detector", "RUN", "record's material", "attempt", "model", "case"} <= written
    assert written == set(folders.FILES)


@pytest.mark.parametrize("kind", sorted(folders.FILES))
def test_a_folder_of_any_kind_is_replaced_by_one_of_its_kind(tmp_path, kind):
    for force in (False, True):  # the second time it is there, signature and all
        with folders.atomic_folder(tmp_path / "x", kind, force=force) as part:
            for name in folders.FILES[kind]:
                (part / name).write_bytes(b"")
    (tmp_path / "x" / "mine.txt").write_bytes(b"")
    with pytest.raises(CovaryError, match=r"holds 'mine.txt', which is not part of"):
        write_one(tmp_path / "x", kind)


def test_trouble_with_reading_is_not_blamed_on_writing(tmp_path):
    with pytest.raises(FileNotFoundError), folders.atomic_folder(tmp_path / "x", "RUN"):
        (tmp_path / "gone.png").read_bytes()
    assert names(tmp_path) == []


def test_files_can_be_shared(tmp_path):
    folders.write_arrays(tmp_path / "a.safetensors", {"a": np.zeros(3)})
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode


# A full disk ---------------------------------------------------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["write_arrays", "write_tensors", "write_json", "digest_file"])
def test_a_full_disk_leaves_nothing(fitted, tmp_path, monkeypatch, where):
    monkeypatch.setattr(folders, where, full)
    with pytest.raises(CovaryError, match=r"cannot be written \(No space left on device\)"):
        fitted.save(tmp_path / "detector")
    assert names(tmp_path) == []


def test_a_full_disk_is_recognised_inside_safetensors(fitted, tmp_path, monkeypatch):
    def refuse(*_):
        raise folders.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(folders, "save_file", refuse)
    with pytest.raises(CovaryError, match=r"cannot be written \(No space left on device\)"):
        fitted.save(tmp_path / "detector")
    assert names(tmp_path) == []


# Damage --------------------------------------------------------------------------------------------------------------


def test_no_pickle_anywhere(saved_folder):
    arrays = ["rows.safetensors", "thumbnails.safetensors", "weights.safetensors"]
    assert names(saved_folder) == ["detector.json", "receipt.json", "receipt.sha256", *arrays]
    for file in saved_folder.iterdir():
        assert not file.read_bytes().startswith((b"\x80", b"PK"))


def flip(content, rng):
    place = int(rng.integers(len(content)))
    return content[:place] + bytes([content[place] ^ int(rng.integers(1, 256))]) + content[place + 1 :]


def cut(content, rng):
    return content[: int(rng.integers(len(content)))]


def grow(content, rng):
    return content + rng.bytes(int(rng.integers(1, 9)))


def double(content, rng):
    a, b = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    return content[:b] + content[a:b] + content[b:] + b"\x00" * (a == b)


def wipe(content, rng):
    a, b = sorted(rng.integers(0, len(content), 2).tolist())
    return content[:a] + rng.bytes(b - a + 1) + content[b + 1 :]


DAMAGE = [flip, flip, cut, grow, double, wipe]


def test_two_hundred_random_corruptions_are_each_refused(saved_folder, detector_folder):
    """Not one byte can be changed, added or lost unnoticed, not even a blank in the JSON."""
    files = names(saved_folder)
    for trial in range(200):
        rng = np.random.default_rng(trial)
        name = files[trial % len(files)]
        full = (saved_folder / name).read_bytes()
        broken = DAMAGE[trial % len(DAMAGE)](full, rng)
        if broken == full:
            continue
        (detector_folder / name).write_bytes(broken)
        try:
            with pytest.raises(CovaryError) as refused:
                saved.open_record(detector_folder)
            assert "\n" not in str(refused.value)
            assert name in str(refused.value)
        finally:
            (detector_folder / name).write_bytes(full)
    saved.open_record(detector_folder)


@pytest.mark.parametrize("name", ["detector.json", "rows.safetensors", "thumbnails.safetensors", "weights.safetensors"])
def test_missing_files_and_files_of_another_detector(name, detector_folder, fitted, tmp_path):
    from dataclasses import replace

    other = replace(fitted.trusted_rows, observable=fitted.trusted_rows.observable + 1)
    (detector_folder / name).unlink()
    with pytest.raises(CovaryError, match=name):
        Detector.load(detector_folder, trust_code=True)
    if name == "rows.safetensors":
        arrays, _ = saved.rows_to_arrays(other, "trusted")
        folders.write_arrays(detector_folder / name, arrays)
        with pytest.raises(CovaryError, match=r"rows.safetensors was changed or damaged; expected sha256"):
            Detector.load(detector_folder, trust_code=True)
    (detector_folder / name).unlink(missing_ok=True)
    (detector_folder / name).mkdir()
    with pytest.raises(CovaryError, match=name):
        Detector.load(detector_folder, trust_code=True)


def test_an_edited_record_is_refused(detector_folder):
    record = json.loads((detector_folder / "detector.json").read_text())
    record["settings"]["fpr"] = 0.5
    folders.write_json(detector_folder / "detector.json", record)
    with pytest.raises(CovaryError, match=r"detector.json was changed or damaged"):
        Detector.load(detector_folder, trust_code=True)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"files": 3}', '{"files": {}, "x": NaN}', "[" * 100_000, "\xff"])
def test_json_that_is_no_record(text, detector_folder):
    (detector_folder / "detector.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CovaryError, match=r"detector.json"):
        Detector.load(detector_folder, trust_code=True)


def test_an_added_file_is_refused(fitted, saved_folder, tmp_path):
    bare = fitted.save(tmp_path / "bare", weights=False)
    shutil.copy(saved_folder / "weights.safetensors", bare)
    with pytest.raises(CovaryError, match=r"holds weights.safetensors, which it was not saved with"):
        Detector.load(bare, trust_code=True)


@pytest.mark.parametrize("what", ["evil.py", "copy/detector.json", ".hidden", "pipe", "link", "empty", "rows"])
def test_a_detector_is_loaded_with_nothing_but_its_own_files(what, detector_folder, run_cli, tmp_path):
    """Whatever `verify` names keeps a detector from being loaded, with a public key or without."""
    place = detector_folder / what
    if what == "rows":
        place = detector_folder / "rows.safetensors"
        place.rename(tmp_path / "rows")
        place.symlink_to(tmp_path / "rows")
    elif what == "pipe":
        os.mkfifo(place)
    elif what == "link":
        place.symlink_to("detector.json")
    elif what == "empty":
        place.mkdir()
    else:
        place.parent.mkdir(exist_ok=True)
        place.write_text("")
    assert run_cli("verify", detector_folder)[0] == 1
    with pytest.raises(CovaryError, match=what):
        Detector.load(detector_folder, trust_code=True)


def test_another_format_is_refused_with_the_version_that_wrote_it(detector_folder):
    record = json.loads((detector_folder / "detector.json").read_text())
    record.pop("digest")
    record["format"] = saved.FORMAT + 1
    folders.write_json(detector_folder / "detector.json", {**record, "digest": folders.digest_json(record)})
    with pytest.raises(CovaryError, match=r"has format 3; expected format 2; it was written by covary"):
        Detector.load(detector_folder, trust_code=True)


def test_other_projections_are_refused(detector_folder):
    record = json.loads((detector_folder / "detector.json").read_text())
    record.pop("digest")
    record |= {"projection": "0" * 16, "versions": {**record["versions"], "torch": "9.9"}}
    folders.write_json(detector_folder / "detector.json", {**record, "digest": folders.digest_json(record)})
    write_receipt(detector_folder)
    with pytest.raises(CovaryError, match=r"draws other random projections than torch 9\.9"):
        Detector.load(detector_folder, trust_code=True)


def test_no_folder(tmp_path):
    with pytest.raises(CovaryError, match=r"no folder .*nothing; expected a folder written by `covary fit`"):
        Detector.load(tmp_path / "nothing")
    with pytest.raises(CovaryError, match=r"has no detector.json"):
        Detector.load(tmp_path)
