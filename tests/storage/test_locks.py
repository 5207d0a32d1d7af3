"""One writer at a time, temporary names that are nobody else's, and signed results that are not touched unasked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tiny
from covary.errors import CovaryError
from covary.storage import folders
from covary.storage.locks import atomic_file, is_temporary, one_writer, temporary
from covary.storage.receipts import write_receipt

HOLDER = """
import sys
from pathlib import Path
from covary.storage.locks import one_writer
with one_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Starts another process that is writing to a folder, until the test ends."""
    started = []

    def start(folder: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDER, str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def write_one(folder, content=b"{}", force=False):
    with folders.atomic_folder(folder, "detector", force=force) as part:
        (part / "detector.json").write_bytes(content)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


# One writer ----------------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_in_one_sentence(holder, run_cli, saved_folder, tiny_files, tmp_path):
    other = holder(tmp_path / "run")
    arguments = ["score", "--trust-code", saved_folder, tiny_files / "inputs.npz", "--out", tmp_path / "run"]
    code, out, err = run_cli(*arguments)
    assert (code, out) == (2, "")
    assert f"is being written by process {other.pid}; expected one writer at a time; wait until it has ended" in err
    code, _, err = run_cli(*arguments, "--partition-size", 32)
    assert (code, "is being written by process" in err) == (2, True)
    with pytest.raises(CovaryError, match="is being written by process"):
        write_one(tmp_path / "run")
    other.kill()
    other.wait()
    assert run_cli(*arguments)[0] == 0  # however a writer ends, its lock ends with it
    assert names(tmp_path) == ["run"]


def test_what_stands_there_is_not_changed_by_two_at_a_time(holder, run_cli, saved_folder, tiny_files, tmp_path):
    run = tmp_path / "run"
    assert run_cli("score", "--trust-code", saved_folder, tiny_files / "inputs.npz", "--out", run)[0] == 0
    holder(run)
    for command in (["report", run], ["mechanisms", run, "--trust-code"]):
        code, _, err = run_cli(*command)
        assert (code, "is being written by process" in err) == (2, True)


def test_threads_are_writers_too_and_one_thread_may_ask_twice(tmp_path):
    said = []

    def second():
        try:
            write_one(tmp_path / "x")
        except CovaryError as problem:
            said.append(str(problem))

    with one_writer(tmp_path / "x"), one_writer(tmp_path / "x"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert ["is being written by another writer" in text for text in said] == [True]
    write_one(tmp_path / "x")
    assert names(tmp_path) == ["x"]


def test_a_refusal_leaves_no_folder_behind(tmp_path):
    with one_writer(tmp_path / "a" / "b" / "c"):
        assert (tmp_path / "a" / "b").is_dir()
    assert names(tmp_path) == []


# Names of our own ----------------------------------------------------------------------------------------------------


def test_folders_that_are_named_as_temporary_ones_used_to_be_stay(tmp_path):
    for name in ("x.part", "x.old.part", ".x.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    for content in (b"old", b"new"):
        write_one(tmp_path / "x", content)
    assert (tmp_path / "x" / "detector.json").read_bytes() == b"new"
    assert names(tmp_path) == [".x.part", "x", "x.old.part", "x.part"]
    assert all((tmp_path / name / "mine.txt").is_file() for name in ("x.part", "x.old.part", ".x.part"))


def test_files_too(tmp_path):
    (tmp_path / "a.json.part").write_text("mine")
    with atomic_file(tmp_path / "a.json") as part:
        assert is_temporary(part.name)
        part.write_text("new")
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.json"):
        (tmp_path / "gone").read_text()
    assert names(tmp_path) == ["a.json", "a.json.part"]
    assert (tmp_path / "a.json").read_text() == "new"


def test_no_two_temporary_names_are_alike(tmp_path):
    assert len({temporary(tmp_path / "x") for _ in range(100)}) == 100
    assert len(temporary(tmp_path / ("x" * 255)).name) < 255


@pytest.mark.parametrize("moment", ["while writing", "between the two renames", "before the old one is gone"])
def test_what_a_killed_writer_left_is_mended_by_the_next(moment, tmp_path):
    write_one(tmp_path / "x", b"old")
    part, old = temporary(tmp_path / "x"), temporary(tmp_path / "x", "old")
    part.mkdir()
    (part / "detector.json").write_bytes(b"half")
    if moment == "between the two renames":
        (tmp_path / "x").rename(old)
    elif moment == "before the old one is gone":
        old.mkdir()
    other = temporary(tmp_path / "y")
    other.mkdir()
    with folders.reserved(tmp_path / "x", "detector"):
        assert (tmp_path / "x" / "detector.json").read_bytes() == b"old"
    assert names(tmp_path) == [other.name, "x"]  # another writer's temporary folder is its own


def test_a_link_to_a_folder_is_followed(tmp_path):
    write_one(tmp_path / "real", b"old")
    (tmp_path / "link").symlink_to("real")
    write_one(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "detector.json").read_bytes() == b"new"
    assert names(tmp_path) == ["link", "real"]


# Signed results ------------------------------------------------------------------------------------------------------


def test_what_is_signed_is_neither_replaced_nor_changed_unasked(run_cli, saved_folder, tiny_files, tmp_path):
    pytest.importorskip("cryptography")
    run, pile = tmp_path / "run", tmp_path / "pile"
    np.savez(tmp_path / "some.npz", x=tiny.inputs()[0][:20])
    score = ["score", "--trust-code", saved_folder, tmp_path / "some.npz"]
    fit = ["fit", "--model", "tiny:trained", "--trusted", tiny_files / "trusted.npz", "--out", tmp_path / "det"]
    cases = {
        run: [[*score, "--out", run], ["report", run], ["mechanisms", run, "--trust-code"]],
        pile: [[*score, "--out", pile, "--partition-size", 8]],
        tmp_path / "det": [fit],
    }
    assert run_cli("keygen", tmp_path / "key")[0] == 0
    for folder, commands in cases.items():
        assert run_cli(*commands[0])[0] == 0
        assert run_cli("sign", folder, "--key", tmp_path / "key")[0] == 0
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        for command in commands:
            code, _, err = run_cli(*command)
            assert (code, f"{folder} is signed and would be" in err.replace("\n", "")) == (2, True), command
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        for command in reversed(commands):
            assert run_cli(*command, "--force")[0] == 0, command
    assert not (run / "signature.json").exists()


def test_texts_that_were_judged_are_part_of_a_run(tmp_path):
    for _ in range(2):
        with folders.atomic_folder(tmp_path / "run", "RUN") as part:
            for name in ("summary.json", "texts.jsonl"):
                (part / name).write_text("")


def test_an_unfinished_receipt_is_nobody_s(tmp_path, saved_folder, detector_folder, monkeypatch):
    """What is left of a receipt that was being written does not count as one, and is told."""
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_receipt(detector_folder)
    assert names(detector_folder) == names(saved_folder)
