"""Receipts: what a RUN or a detector was made with and what is in it, as one canonical record with its SHA-256.

`receipt.json` is the canonical record itself, byte for byte, so its SHA-256 is the file's own; `receipt.sha256` holds
that in the form `sha256sum --check` reads. The record is a function of the folder's other files alone, which is what
makes it possible to recompute it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from covary.errors import CovaryError
from covary.storage.contents import contents
from covary.storage.fingerprints import canonical_json, digest_bytes, digest_file
from covary.storage.folders import HASH, RECEIPT, SIGNATURE
from covary.storage.locks import write_file

SCHEMA = "1.0"
OWN = {RECEIPT, HASH, SIGNATURE}
WHAT = "a RUN or detector with a receipt"
# The file that tells what a folder is.
RECORDS = {"detector": "detector.json", "RUN": "run.json", "pile": "pile.json", "export": "exported.json"}
# Configuration, seeds, fingerprints and outputs.
Parts = tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]
# What reading a folder raises whose files are not as covary writes them.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError, csv.Error)


def kind_of(folder: Path) -> str:
    """`detector`, `RUN`, `pile` or `export`, by the files that are there."""
    for kind, name in RECORDS.items():
        if (folder / name).is_file():
            return kind
    raise CovaryError(f"{folder} is no detector, RUN, pile or export", f"a folder with {', '.join(RECORDS.values())}")


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of every regular file of a folder by its path inside it, receipt and signature apart."""
    return {name: digest_file(path) for name, path in contents(folder)[0].items() if name not in OWN}


def record_of(folder: Path, kind: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """The record of what is in a folder now, by the sha256 of its files.

    Raises:
        one of `UNREADABLE`: a file is missing or is not what covary writes.
    """
    record = json.loads((folder / RECORDS[kind]).read_text("utf-8"))
    config, seeds, fingerprints, outputs = PARTS[kind](folder, record, digests)
    return {
        "schema_version": SCHEMA,
        "kind": kind,
        "config": {name: portable(value) for name, value in config.items()},
        "versions": record["versions"],
        "seeds": seeds,
        "fingerprints": fingerprints,
        "outputs": outputs,
        "files": dict(digests),
    }


def _of_run(folder: Path, record: Any, digests: Mapping[str, str]) -> Parts:
    fingerprints = {name: record["fingerprints"][name] for name in ("network", "trusted", "inputs")}
    outputs = {"results": digests["results.csv"], **_counted(folder / "results.csv")}
    return record["config"], {"seed": record["seed"]}, fingerprints, outputs


def _of_detector(folder: Path, record: Any, digests: Mapping[str, str]) -> Parts:
    config = {**record["settings"], "model": record["factory"], "preprocessing": record["preprocessing"]}
    fingerprints = {
        "network": record["fingerprint"], "trusted": record["trusted_fingerprint"], "projection": record["projection"],
    }  # fmt: skip
    return config, {"seed": record["settings"]["seed"]}, fingerprints, {"rows": digests["rows.safetensors"]}


def _of_export(folder: Path, record: Any, digests: Mapping[str, str]) -> Parts:
    config = {**record["settings"], "graph": record["graph"], "preprocessing": record["preprocessing"]}
    fingerprints = {"network": record["fingerprint"], "trusted": record["trusted_fingerprint"]}
    outputs = {name: digest for name, digest in digests.items() if name.startswith(("network.", "rows."))}
    return config, {"seed": record["settings"]["seed"]}, fingerprints, outputs


def _of_pile(folder: Path, record: Any, digests: Mapping[str, str]) -> Parts:
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    config = {name: value for name, value in record.items() if name not in ("versions", "detector", "listing")}
    fingerprints = {
        "network": record["detector"]["network"], "detector": record["detector"]["digest"],
        "listing": record["listing"],
    }  # fmt: skip
    outputs = {name: summary[name] for name in ("n", "n_flagged", "rule", "verdicts")}
    # Seeds are the detector's own.
    return config, {}, fingerprints, outputs


PARTS: dict[str, Callable[[Path, Any, Mapping[str, str]], Parts]] = {
    "RUN": _of_run,
    "detector": _of_detector,
    "pile": _of_pile,
    "export": _of_export,
}


def _counted(results: Path) -> dict[str, int]:
    with open(results, newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        place = next(rows).index("flagged")
        flags = [row[place] for row in rows if row]
    return {"n": len(flags), "n_flagged": flags.count("true")}


def portable(value: Any) -> Any:
    """A setting without the machine's folders in it: of an absolute path only the last name is kept.

    >>> portable("/home/me/data/new.npz"), portable("data/new.npz"), portable(0.01)
    ('new.npz', 'data/new.npz', 0.01)
    """
    if isinstance(value, str):
        for path in (PurePosixPath(value), PureWindowsPath(value)):
            if path.is_absolute():
                return path.name
    return value


def write_receipt(folder: Path) -> str:
    """Writes the receipt of a finished folder, whole or not at all; returns its SHA-256."""
    return _put(folder, record_of(folder, kind_of(folder), file_digests(folder)))


def renew(folder: Path, name: str) -> None:
    """Takes a file that was made again from the others, such as the report, into a receipt; no other difference."""
    if not (folder / RECEIPT).is_file():
        return
    record, _ = read_receipt(folder)
    found = digest_file(folder / name)
    if record["files"].get(name) != found:
        record["files"][name] = found
        _put(folder, record)


def _put(folder: Path, record: Mapping[str, Any]) -> str:
    content = canonical_json(record).encode()
    digest = digest_bytes(content)
    for name, text in ((RECEIPT, content), (HASH, hash_line(digest))):
        write_file(folder / name, text)
    return digest


def hash_line(digest: str) -> bytes:
    """A receipt's SHA-256 as `sha256sum` writes it."""
    return f"{digest}  {RECEIPT}\n".encode()


def read_receipt(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The record of a folder's receipt and the bytes it is written in.

    Raises:
        CovaryError: there is none, or it is no canonical record of covary's.
    """
    path = folder / RECEIPT
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise CovaryError(f"{folder} has no {RECEIPT} ({problem.strerror})", WHAT, "scan or fit again") from None
    try:
        record = strict_json(content)
        valid = canonical_json(record).encode() == content and _well_formed(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        record, valid = {}, False
    if not valid:
        raise CovaryError(f"{path} was changed or damaged", "the record that covary wrote", "copy the folder again")
    return record, content


def _well_formed(record: Any) -> bool:
    files, versions = record["files"], record["versions"]
    return isinstance(versions, dict) and all(isinstance(digest, str) for digest in files.values())


def strict_json(content: bytes) -> Any:
    """JSON in which no key comes twice, so that it has one meaning; ValueError otherwise."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key comes twice")
        return found

    return json.loads(content.decode("utf-8"), object_pairs_hook=once)
