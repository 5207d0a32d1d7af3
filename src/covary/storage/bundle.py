"""Receipts of several RUNs and detectors in one file, the same whatever order they are put together in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from covary.errors import CovaryError
from covary.storage import signatures
from covary.storage.fingerprints import canonical_json, digest_bytes
from covary.storage.locks import write_file
from covary.storage.receipts import read_receipt, strict_json
from covary.storage.verify import check_unchanged, read_signature

KIND = "bundle"
FORM = "2.0"
WHAT = "a bundle written by `covary receipts merge`"
KEYS = {"schema_version", "kind", "count", "names", "receipts", "signatures"}


def bundle_of(folder: Path) -> dict[str, Any]:
    """A bundle of one: the receipt of an intact folder, and its signature where it has one."""
    check_unchanged(folder)
    record, content = read_receipt(folder)
    signature = read_signature(folder)
    entry = {"record": record, "sha256": digest_bytes(content), "signatures": [] if signature is None else [signature]}
    return merged([{"receipts": [entry], "signatures": []}])


def merged(bundles: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One bundle of many: each receipt once, in the order of their SHA-256, with all its signatures.

    Merging is commutative, associative and idempotent, so neither order nor grouping shows in the result. A signature
    of a whole bundle stays where the result holds that bundle's receipts, no fewer and no more.
    """
    records: dict[str, Any] = {}
    signed: dict[str, dict[str, Any]] = {}
    unique: dict[str, Any] = {}
    for bundle in bundles:
        unique.update((canonical_json(signature), signature) for signature in bundle["signatures"])
        for entry in bundle["receipts"]:
            records[entry["sha256"]] = entry["record"]
            own = signed.setdefault(entry["sha256"], {})
            own.update((canonical_json(signature), signature) for signature in entry["signatures"])
    receipts = [
        {"record": records[digest], "sha256": digest, "signatures": [own[key] for key in sorted(own)]}
        for digest, own in sorted(signed.items())
    ]
    result = {
        "schema_version": FORM, "kind": KIND, "count": len(receipts), "names": [entry["sha256"] for entry in receipts],
        "receipts": receipts,
    }  # fmt: skip
    message = contents_of(result)
    return {**result, "signatures": [unique[key] for key in sorted(unique) if _about(unique[key], message)]}


def contents_of(bundle: dict[str, Any]) -> bytes:
    """What is signed of a bundle as a whole: how many receipts it holds, and the SHA-256 of each."""
    return canonical_json({name: bundle[name] for name in ("schema_version", "kind", "count", "names")}).encode()


def _about(signature: Any, message: bytes) -> bool:
    return isinstance(signature, dict) and signature.get("receipt") == digest_bytes(message)


def merge(paths: Iterable[Path], out: Path) -> dict[str, Any]:
    """Merges receipts of folders, and bundles, into the file `out`; returns its SHA-256 and the receipts' own.

    Raises:
        CovaryError: a folder differs from its receipt, a bundle is damaged, or `out` is no bundle to be replaced.
    """
    bundle = merged([bundle_of(path) if path.is_dir() else read_bundle(path) for path in paths])
    if out.exists():
        read_bundle(out)  # only a bundle is replaced
    return {"bundle": str(out), **_write(bundle, out), "receipts": bundle["names"]}


def sign_bundle(path: Path, key_file: Path) -> dict[str, str]:
    """Signs a sound bundle as a whole: how many receipts it holds and which; returns the signature.

    Raises:
        CovaryError: it was changed, or the key is none.
    """
    bundle = read_bundle(path)
    signature = signatures.sign_bytes(contents_of(bundle), key_file)
    _write(merged([bundle, {"receipts": [], "signatures": [signature]}]), path)
    return signature


def _write(bundle: dict[str, Any], out: Path) -> dict[str, str]:
    content = canonical_json(bundle).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, content)
    return {"sha256": digest_bytes(content)}


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
        valid = canonical_json(bundle).encode() == content and bundle["kind"] == KIND and set(bundle) == KEYS
        valid = valid and bundle["schema_version"] == FORM and isinstance(bundle["signatures"], list)
        valid = valid and all({"record", "sha256", "signatures"} == set(entry) for entry in bundle["receipts"])
        valid = valid and all(isinstance(entry["signatures"], list) for entry in bundle["receipts"])
        valid = valid and all(isinstance(entry["sha256"], str) for entry in bundle["receipts"])
    except (ValueError, KeyError, TypeError, RecursionError):
        bundle, valid = {}, False
    if not valid:
        raise CovaryError(f"{path} is no bundle of receipts, or was damaged", WHAT, "merge the receipts again")
    return bundle


def bundle_differences(path: Path, public_key: str | None = None) -> Iterator[tuple[str, str]]:
    """(name, what is wrong with it) of whatever in a bundle is not what its SHA-256, its list or a signature says.

    With `public_key`, base64 of a key, the bundle as a whole must be signed with it; where it is not, each receipt that
    is not signed with it either has a name, too.
    """
    bundle = _parsed(path)
    if not bundle["receipts"]:
        yield "receipts", "holds none"
    names = [entry["sha256"] for entry in bundle["receipts"]]
    if canonical_json([bundle["count"], bundle["names"]]) != canonical_json([len(names), names]):
        yield "names", f"lists {bundle['count']} receipts, which are not the {len(names)} that it holds"
    message = contents_of(bundle)
    yield from _signed("signatures", bundle["signatures"], message)
    vouched = public_key is None or _by(bundle["signatures"], message, public_key)
    if not vouched:
        yield "signatures", f"none of the whole was made with the key {signatures.short(public_key)}"
    for i, entry in enumerate(bundle["receipts"]):
        name, own = f"receipts[{i}]", canonical_json(entry["record"]).encode()
        if digest_bytes(own) != entry["sha256"]:
            yield name, "is not what its SHA-256 says"
        yield from _signed(f"{name}.signatures", entry["signatures"], own)
        if not vouched and not _by(entry["signatures"], own, public_key):
            yield f"{name}.signatures", f"none was made with the key {signatures.short(public_key)}"
    if merged([bundle])["receipts"] != bundle["receipts"]:
        yield "receipts", "are not in the order of their SHA-256, each once"


def _signed(name: str, found: list[Any], message: bytes) -> Iterator[tuple[str, str]]:
    wrong = [signatures.trouble(signature, message) for signature in found]
    yield from ((name, what) for what in wrong if what is not None)


def _by(found: list[Any], message: bytes, public_key: str | None) -> bool:
    return any(signatures.trouble(signature, message, public_key) is None for signature in found)


def verify_bundle(path: Path, public_key: str | None = None) -> dict[str, Any]:
    """What `covary verify` says of a bundle."""
    found = [{"name": name, "what": what} for name, what in bundle_differences(path, public_key)]
    n = len(_parsed(path)["receipts"])
    notes = [f"{n} receipts; that the folders still are what they say is for `covary verify FOLDER` to tell."]
    digest = digest_bytes(path.read_bytes())
    return {"folder": str(path), "receipt": digest, "signed_by": None, "differences": found, "notes": notes}
