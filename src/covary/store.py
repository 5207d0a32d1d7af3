"""Folders on disk: safetensors and JSON with a digest of every file, written whole or not at all; never pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from covary.errors import CovaryError
from covary.fingerprints import digest_file, digest_json
from covary.types import Rows


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A `.part` folder that takes the wanted name only when everything in it is written.

    Raises:
        CovaryError: the place is taken by something that is not ours to replace, or cannot be written to.
    """
    folder = Path(folder)
    part = folder.with_name(folder.name + ".part")
    refuse_taken(folder)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        old = folder.with_name(folder.name + ".old")
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as problem:
        raise CovaryError(
            f"{folder} cannot be written ({problem.strerror or problem})", "", "free some space or choose another place"
        ) from problem
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refuse_taken(folder: Path) -> None:
    """Refuses a place that holds anything but an earlier result of covary, before any work goes into it."""
    ours = folder.is_dir() and (
        not any(folder.iterdir()) or (folder / "detector.json").exists() or (folder / "summary.json").exists()
    )
    if folder.exists() and not ours:
        raise CovaryError(f"{folder} exists already", "a new folder or an earlier result of covary", "choose another")


def write_json(path: Path, value: Any) -> None:
    """JSON for people and programs: sorted keys, NaN refused."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False), "utf-8")


def read_json(path: Path, what: str) -> Any:
    """JSON from disk; a missing or broken file is told in one sentence."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CovaryError(f"{path.parent} has no {path.name}", what, "check the path") from None
    except (OSError, ValueError) as problem:
        raise CovaryError(f"{path} is damaged ({problem})", what, "make it again") from problem


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Named arrays as safetensors."""
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    except SafetensorError as problem:
        raise OSError(str(problem)) from problem
    with open(path, "rb") as file:
        os.fsync(file.fileno())


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
        CovaryError: the folder or a file is missing, or a byte of it is not what was written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CovaryError(f"no folder {folder}", what, "check the path")
    record = read_json(folder / name, what)
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict):
        raise CovaryError(f"{folder / name} is damaged (no list of files)", what, "make it again")
    claimed = record.pop("digest", None)
    try:
        actual = digest_json(record)
    except ValueError:
        actual = "not canonical"
    if claimed != actual:
        raise CovaryError(f"{folder / name} was changed or damaged", f"digest {claimed}", f"found {actual}")
    for file, digest in record["files"].items():
        path = folder / Path(file).name
        if not path.is_file():
            raise CovaryError(f"{folder} lacks {file}", "every file it was saved with", "copy the whole folder again")
        found = digest_file(path)
        if found != digest:
            raise CovaryError(f"{path} was changed or damaged", f"sha256 {digest[:16]}...", f"found {found[:16]}...")
    return record


def rows_to_arrays(rows: Rows, prefix: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Rows as named arrays and the JSON that puts them together again."""
    arrays = {
        f"{prefix}.predicted": rows.predicted,
        f"{prefix}.observable": rows.observable,
        f"{prefix}.functional_norms": rows.functional_norms,
        **{f"{prefix}.functional.{i}": part for i, part in enumerate(rows.functional.values())},
        **{f"{prefix}.latent.{i}": part for i, part in enumerate(rows.latent.values())},
        **{f"{prefix}.confidence.{i}": part for i, part in enumerate(rows.confidence.values())},
    }
    names = {"functional": list(rows.functional), "latent": list(rows.latent), "confidence": list(rows.confidence)}
    return arrays, {"ids": list(rows.ids), **names}


def rows_from_arrays(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any], prefix: str) -> Rows:
    """Rows as they were given to `rows_to_arrays`."""
    return Rows(
        ids=record["ids"],
        predicted=arrays[f"{prefix}.predicted"],
        observable=arrays[f"{prefix}.observable"],
        functional={name: arrays[f"{prefix}.functional.{i}"] for i, name in enumerate(record["functional"])},
        functional_norms=arrays[f"{prefix}.functional_norms"],
        latent={name: arrays[f"{prefix}.latent.{i}"] for i, name in enumerate(record["latent"])},
        confidence={name: arrays[f"{prefix}.confidence.{i}"] for i, name in enumerate(record["confidence"])},
    )


