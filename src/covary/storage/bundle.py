"""Receipts of several RUNs and detectors in one file, the same whatever order they are put together in."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from covary.errors import CovaryError
from covary.storage import signatures
from covary.storage.fingerprints import canonical_json, digest_bytes
from covary.storage.receipts import SCHEMA, read_receipt, strict_json
from covary.storage.verify import check_unchanged, read_signature

KIND = "bundle"
WHAT = "a bundle written by `covary receipts merge`"


def bundle_of(folder: Path) -> dict[str, Any]:
    """A bundle of one: the receipt of an intact folder, and its signature where it has one."""
    check_unchanged(folder)
    record, content = read_receipt(folder)
    signature = read_signature(folder)
    entry = {"record": record, "sha256": digest_bytes(content), "signatures": [] if signature is None else [signature]}
    return {"schema_version": SCHEMA, "kind": KIND, "receipts": [entry]}


def merged(bundles: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One bundle of many: each receipt once, in the order of their SHA-256, with all its signatures.

    Merging is commutative, associative and idempotent, so neither order nor grouping shows in the result.
    """
    records: dict[str, Any] = {}
    signed: dict[str, dict[str, Any]] = {}
    for bundle in bundles:
        for entry in bundle["receipts"]:
            records[entry["sha256"]] = entry["record"]
            own = signed.setdefault(entry["sha256"], {})
            own.update((canonical_json(signature), signature) for signature in entry["signatures"])
    receipts = [
        {"record": records[digest], "sha256": digest, "signatures": [own[key] for key in sorted(own)]}
        for digest, own in sorted(signed.items())
    ]
    return {"schema_version": SCHEMA, "kind": KIND, "receipts": receipts}


def merge(paths: Iterable[Path], out: Path) -> dict[str, Any]:
    """Merges receipts of folders, and bundles, into the file `out`; returns its SHA-256 and the receipts' own.

    Raises:
        CovaryError: a folder differs from its receipt, a bundle is damaged, or `out` is no bundle to be replaced.
    """
    bundle = merged([bundle_of(path) if path.is_dir() else read_bundle(path) for path in paths])
    if out.exists():
        read_bundle(out)  # only a bundle is replaced
    content = canonical_json(bundle).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_bytes(content)
    os.replace(part, out)
    receipts = [entry["sha256"] for entry in bundle["receipts"]]
    return {"bundle": str(out), "sha256": digest_bytes(content), "receipts": receipts}


def read_bundle(path: Path) -> dict[str, Any]:
    """A bundle from disk, once nothing in it is found to be changed.

    Raises:
        CovaryError: it is not there, is none, or was changed.
    """
    bundle = _parsed(path)
    for name, wrong in bundle_differences(path):
        raise CovaryError(f"{path} was changed: {name} {wrong}", WHAT, "merge the receipts again")
    return bundle


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise CovaryError(f"{path} cannot be read ({problem.strerror})", WHAT, "check the path") from problem
    try:
        bundle = strict_json(content)
        whole = canonical_json(bundle).encode() == content and bundle["kind"] == KIND
        whole = whole and all({"record", "sha256", "signatures"} == set(entry) for entry in bundle["receipts"])
        whole = whole and all(isinstance(entry["signatures"], list) for entry in bundle["receipts"])
    except (ValueError, KeyError, TypeError, RecursionError):
        bundle, whole = {}, False
    if not whole:
        raise CovaryError(f"{path} is no bundle of receipts, or was damaged", WHAT, "merge the receipts again")
    return bundle


def bundle_differences(path: Path, public_key: str | None = None) -> Iterator[tuple[str, str]]:
    """(name, what is wrong with it) of each receipt of a bundle that is not what its SHA-256 or signature says."""
    bundle = _parsed(path)
    for i, entry in enumerate(bundle["receipts"]):
        name, message = f"receipts[{i}]", canonical_json(entry["record"]).encode()
        if digest_bytes(message) != entry["sha256"]:
            yield name, "is not what its SHA-256 says"
        wrong = [signatures.trouble(signature, message) for signature in entry["signatures"]]
        yield from ((f"{name}.signatures", what) for what in wrong if what is not None)
        if public_key is not None and all(
            signatures.trouble(signature, message, public_key) is not None for signature in entry["signatures"]
        ):
            yield f"{name}.signatures", f"none was made with the key {signatures.short(public_key)}"
    if merged([bundle]) != bundle:
        yield "receipts", "are not in the order of their SHA-256, each once"


def bundle_told(path: Path, public_key: str | None = None) -> dict[str, Any]:
    """What `covary verify` says of a bundle."""
    found = [{"name": name, "what": what} for name, what in bundle_differences(path, public_key)]
    n = len(_parsed(path)["receipts"])
    notes = [f"{n} receipts; that the folders still are what they say is for `covary verify FOLDER` to tell."]
    digest = digest_bytes(path.read_bytes())
    return {"folder": str(path), "receipt": digest, "signed_by": None, "differences": found, "notes": notes}
