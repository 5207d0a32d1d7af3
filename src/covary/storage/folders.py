"""Folders on disk: safetensors and JSON with a digest of every file, written whole or not at all; never pickle."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from covary.errors import CovaryError
from covary.storage.contents import contents
from covary.storage.fingerprints import digest_file, digest_json
from covary.storage.locks import cannot_write, leftovers, one_writer, temporary

RECEIPT, HASH, SIGNATURE = "receipt.json", "receipt.sha256", "signature.json"
_OWN = (RECEIPT, HASH, SIGNATURE)
# What `transformers` saves of the language models that covary makes.
_MODEL = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# What covary writes, by kind; the first file of a kind tells that a folder is one.
FILES = {
    "detector": (
        "detector.json",
        "rows.safetensors",
        "thumbnails.safetensors",
        "weights.safetensors",
        "draws.safetensors",
        *_OWN,
    ),
    "export": (
        "exported.json",
        "network.onnx",
        "network.onnx.data",
        "network.pt",
        "network.pt2",
        "rows.safetensors",
        *_OWN,
    ),
    "RUN": (
        "summary.json",
        "results.csv",
        "run.json",
        "report.json",
        "report.html",
        "mechanisms.json",
        "cards.json",
        "texts.jsonl",
        "clean.csv",
        "clean.json",
        "keep.txt",
        "remove.txt",
        "mislabelled.txt",
        *_OWN,
    ),
    "guard": ("guard.json", "rows.safetensors", *_OWN),
    "demo's material": ("inputs.npz", "trusted.npz", "weights.safetensors"),
    "language demo's material": ("inputs.jsonl", "trusted.jsonl", "model"),
    "prompts": ("inputs.jsonl", "trusted.jsonl"),
    "record": ("attack_result.pt", "bd_test_dataset"),
    "record's material": ("record.json", "inputs.npz", "trusted.npz", "weights.safetensors"),
    "attempt": ("attempt.json", "weights.safetensors", *_MODEL),
    "model": (*_MODEL, "seconds.json"),
    "case": ("case.json", "inputs.jsonl", "trusted.jsonl", "sampling.jsonl", "model"),
}


@contextmanager
def atomic_folder(folder: Path, kind: str, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder that takes the wanted name only when everything in it is written; by one writer at a time.

    Args:
        folder: the wanted name; a link to a folder is followed.
        kind: what is written, a key of `FILES`.
        force: replace an earlier result though it is signed.

    Raises:
        CovaryError: the place is taken by something that is not ours to replace, is being written by somebody else,
            or cannot be written to.
    """
    with reserved(folder, kind, force=force) as folder:
        part, old = temporary(folder), temporary(folder, "old")
        try:
            part.mkdir()
            yield part
            check_replaceable(folder, kind, force=force)
            if folder.exists():
                folder.rename(old)
            try:
                part.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
        except OSError as problem:
            # A file of the user's that went away meanwhile is no trouble with writing.
            if problem.filename is not None and part not in (Path(problem.filename), *Path(problem.filename).parents):
                raise
            raise cannot_write(folder, problem) from problem
        finally:
            shutil.rmtree(part, ignore_errors=True)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)


@contextmanager
def reserved(folder: Path, kind: str, *, force: bool = False) -> Iterator[Path]:
    """Keeps a place for one result from before the work until it is written; gives the place, links followed.

    What a killed writer left under temporary names is mended first: a result that it had moved aside comes back.

    Raises:
        CovaryError: as of `atomic_folder`.
    """
    folder = Path(os.path.realpath(folder)) if folder.is_dir() else Path(os.path.abspath(folder))
    check_replaceable(folder, kind, force=force)
    with one_writer(folder) as alone:
        if alone:
            _mend(folder)
        check_replaceable(folder, kind, force=force)
        yield folder


def _mend(folder: Path) -> None:
    aside = leftovers(folder, "old")
    if aside and not os.path.lexists(folder):
        aside.pop().rename(folder)
    for path in [*aside, *leftovers(folder, "part")]:
        shutil.rmtree(path, ignore_errors=True)


def check_replaceable(folder: Path, kind: str, *, force: bool = False) -> None:
    """Refuses a place that holds anything but an earlier result of the same kind, before any work goes into it."""
    own, expected = FILES[kind], f"a new folder, or a {kind} to be replaced"
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise CovaryError(f"{folder} is a file", expected, "choose another")
        return
    present = sorted(entry.name for entry in folder.iterdir())
    strange = [name for name in present if name not in own]
    if strange:
        raise CovaryError(f"{folder} holds {strange[0]!r}, which is not part of a {kind}", expected, "choose another")
    if present and own[0] not in present:
        raise CovaryError(f"{folder} exists and has no {own[0]}", expected, "choose another")
    check_unsigned(folder, "replaced", force)


def check_unsigned(folder: Path, what: str, force: bool = False) -> None:
    """Refuses to touch a folder that somebody has signed unless that is said: the signature would no longer hold."""
    if not force and os.path.lexists(folder / SIGNATURE):
        remedy = "choose another place, or pass force=True"
        raise CovaryError(f"{folder} is signed and would be {what}", "an unsigned folder", remedy)


def write_json(path: Path, value: Any) -> None:
    """JSON for people and programs: sorted keys, NaN refused."""
    path.write_bytes(rendered(value))


def rendered(value: Any) -> bytes:
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    # A name of a file that is no UTF-8 holds lone surrogates, which JSON has an escape for.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def read_json(path: Path, what: str) -> Any:
    """JSON from disk; a missing or broken file is told in one sentence."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CovaryError(f"{path.parent} has no {path.name}", what, "check the path") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise CovaryError(f"{path} is damaged ({problem})", what, "make it again") from problem


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Named arrays as safetensors, on the disk when this returns."""
    with _as_os_error(path):
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Named torch tensors as safetensors, each with memory of its own; on the disk when this returns."""
    from safetensors.torch import save_file as save_tensors

    with _as_os_error(path):
        save_tensors({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)


@contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as problem:
        code = re.search(r"os error (\d+)", str(problem))
        if code is None:
            raise OSError(str(problem)) from problem
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from problem
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    # safetensors makes files that nobody else can read; a folder is for sharing.
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Named arrays from safetensors."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as problem:
        raise CovaryError(f"{path} is damaged ({problem})", "intact safetensors", "make it again") from problem


def seal(folder: Path, record: dict[str, Any], name: str) -> None:
    """Writes `record` with the digest of every file beside it, and its own."""
    files = {file.name: digest_file(file) for file in sorted(folder.iterdir()) if file.name != name}
    record = {**record, "files": files}
    write_json(folder / name, {**record, "digest": digest_json(record)})


def open_sealed(folder: Path, name: str, what: str) -> dict[str, Any]:
    """The record of a sealed folder, after every digest has been checked.

    Raises:
        CovaryError: the folder or a file is missing, a byte of it is not what was written, or a file was added.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CovaryError(f"no folder {folder}", what, "check the path")
    record = read_json(folder / name, what)
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        raise CovaryError(f"{folder / name} is damaged (no list of files)", what, "make it again")
    try:
        untouched = rendered(record) == (folder / name).read_bytes()
        claimed = record.pop("digest", None)
        untouched = untouched and claimed == digest_json(record)
    except ValueError:  # NaN, which Python reads and JSON does not have
        untouched = False
    if not untouched:
        raise CovaryError(f"{folder / name} was changed or damaged", "what covary wrote", "copy the folder again")
    files, strange = contents(folder)
    for file, digest in record["files"].items():
        if file not in files:
            lacks = f"{folder} lacks {file}" if file not in strange else f"{folder / file} {strange[file]}"
            raise CovaryError(lacks, "every file it was saved with", "copy the whole folder again")
        found = digest_file(files[file])
        if found != digest:
            differs = f"sha256 {str(digest)[:16]}...", f"found {found[:16]}..."
            raise CovaryError(f"{files[file]} was changed or damaged", *differs)
    for file in sorted({*files, *strange} - {*record["files"], name, *_OWN}):
        raise CovaryError(f"{folder} holds {file}, which it was not saved with", "only its own files", "remove it")
    return record
