"""Is a RUN or a detector still what its receipt says: everything is computed again, and each difference has a name."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from covary.errors import CovaryError
from covary.storage import signatures
from covary.storage.contents import contents
from covary.storage.fingerprints import canonical_json, digest_bytes, versions
from covary.storage.folders import HASH, RECEIPT, SIGNATURE
from covary.storage.locks import write_file
from covary.storage.receipts import (
    UNREADABLE,
    WHAT,
    file_digests,
    hash_line,
    kind_of,
    read_receipt,
    record_of,
    strict_json,
)

MISSING = "is missing"


def differences(
    folder: Path, public_key: str | None = None, digests: Mapping[str, str] | None = None
) -> Iterator[tuple[str, str]]:
    """(name, what is wrong with it) of each thing that differs from the receipt; a name is a file or a key.

    Args:
        folder: a RUN or a detector.
        public_key: base64 of the key that must have signed it; None accepts none and any.
        digests: sha256 of the folder's files, where they are known already.

    Raises:
        CovaryError: the folder has no receipt at all.
    """
    if not (folder / RECEIPT).is_file():
        raise CovaryError(f"{folder} has no {RECEIPT}", WHAT, "scan or fit again")
    digests = file_digests(folder) if digests is None else digests
    strange = contents(folder)[1]
    try:
        record, content = read_receipt(folder)
    except CovaryError:
        yield RECEIPT, "was changed or damaged"
        return
    found = list(_against(folder, record, digests, strange))
    claimed = (folder / HASH).read_bytes() if (folder / HASH).is_file() else b""
    if claimed != hash_line(digest_bytes(content)):
        # Where the record fits everything else, it is the hash that was touched.
        yield (RECEIPT, f"has not the SHA-256 in {HASH}") if found else (HASH, f"is not the SHA-256 of {RECEIPT}")
    yield from found
    if (wrong := _signature_trouble(folder, content, public_key)) is not None:
        yield SIGNATURE, wrong


def check_unchanged(folder: Path, digests: Mapping[str, str] | None = None, public_key: str | None = None) -> None:
    """Refuses a folder that differs from its receipt in anything, naming the first thing."""
    for name, wrong in differences(folder, public_key, digests):
        raise CovaryError(f"{folder} is not what its receipt says: {name} {wrong}", "", "copy the whole folder again")


def receipt_state(folder: Path, ignoring: Collection[str] = ()) -> str:
    """`intact`, `none`, or what differs first from the receipt, files that are about to be made again left aside."""
    try:
        return next((f"{name} {wrong}" for name, wrong in differences(folder) if name not in ignoring), "intact")
    except CovaryError:
        return "none"


def in_words(state: str) -> str:
    """A `receipt_state` after the name of a folder."""
    return {"intact": "is what its receipt says", "none": "has no receipt"}.get(
        state, f"is not what its receipt says: {state}"
    )


def _against(
    folder: Path, record: Mapping[str, Any], digests: Mapping[str, str], strange: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    files = list(_files(record["files"], digests, strange))
    yield from files
    try:
        now = record_of(folder, kind_of(folder), digests)
        inside = list(_inside(folder, now))
    except (*UNREADABLE, CovaryError) as problem:
        if not files:  # else that is why
            yield RECEIPT, f"cannot be recomputed from the folder ({type(problem).__name__}: {problem})"
        return
    for name, then, found in changed({**record, "files": None}, {**now, "files": None}):
        yield name, f"the receipt says {then}, the folder {found}"
    yield from inside


def _files(then: Mapping[str, str], now: Mapping[str, str], strange: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield from strange.items()
    for name, digest in then.items():
        if name in strange:
            continue
        if name not in now:
            yield name, MISSING
        elif now[name] != digest:
            yield name, f"was changed (sha256 {str(digest)[:16]}, found {now[name][:16]})"
    yield from ((name, "was added") for name in now if name not in then)


def _inside(folder: Path, now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where a RUN's own files contradict each other, receipt or not."""
    if now["kind"] != "RUN":
        return
    outputs, run = now["outputs"], json.loads((folder / "run.json").read_text("utf-8"))
    if run["fingerprints"]["results"] != outputs["results"]:
        yield "run.json", "tells another sha256 of results.csv"
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    for name in ("n", "n_flagged"):
        if summary[name] != outputs[name]:
            yield "summary.json", f"says {name} = {summary[name]}, results.csv has {outputs[name]}"


def changed(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted name, old, new) of each leaf that differs between two JSON values, as canonical text or `nothing`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            name = f"{prefix}.{key}" if prefix else key
            if key in old and key in new:
                yield from changed(old[key], new[key], name)
            else:
                then, now = (canonical_json(side[key]) if key in side else "nothing" for side in (old, new))
                yield name, then, now
    # As text, because Python takes 1, 1.0 and true for equal.
    elif canonical_json(old) != canonical_json(new):
        yield prefix, canonical_json(old), canonical_json(new)


def read_signature(folder: Path) -> Any:
    """What `signature.json` holds; None where there is none, ValueError where it is not canonical."""
    path = folder / SIGNATURE
    if not path.is_file():
        return None
    content = path.read_bytes()
    signature = strict_json(content)
    if canonical_json(signature).encode() != content:
        raise ValueError("not canonical")
    return signature


def _signature_trouble(folder: Path, message: bytes, public_key: str | None) -> str | None:
    try:
        signature = read_signature(folder)
    except (ValueError, RecursionError):
        return "was changed or damaged"
    if signature is None:
        return None if public_key is None else "is missing: the folder is not signed"
    return signatures.trouble(signature, message, public_key)


def sign(folder: Path, key_file: Path) -> dict[str, str]:
    """Signs a folder's receipt with a private key, once nothing in the folder differs from it.

    Raises:
        CovaryError: something differs, or the key is none.
    """
    # A signature of an earlier time is about to be replaced, and so says nothing.
    wrong = [(name, what) for name, what in differences(folder) if name != SIGNATURE]
    if wrong:
        raise CovaryError(f"{folder} is not what its receipt says: {wrong[0][0]} {wrong[0][1]}", "an intact folder")
    signature = signatures.sign_bytes((folder / RECEIPT).read_bytes(), key_file)
    write_file(folder / SIGNATURE, canonical_json(signature).encode())
    return signature


def verify_folder(folder: Path, public_key: str | None = None) -> dict[str, Any]:
    """What `covary verify` says of a folder: its receipt's SHA-256, who signed it, differences, and notes."""
    if not folder.is_dir():
        raise CovaryError(f"no folder {folder}", WHAT, "check the path")
    found = [{"name": name, "what": what} for name, what in differences(folder, public_key)]
    notes = []
    try:
        record, content = read_receipt(folder)
        signature = read_signature(folder)
    except (CovaryError, ValueError):
        return {"folder": str(folder), "receipt": None, "signed_by": None, "differences": found, "notes": notes}
    key = None if signature is None or any(d["name"] == SIGNATURE for d in found) else signature["public_key"]
    if key is not None and public_key is None:
        notes.append("The signature fits; pass public_key= to learn whose it is.")
    # A pile keeps those versions alone that decide its bits.
    now_here = {name: now for name, now in versions().items() if name in record["versions"]}
    for name, then, now in changed(record["versions"], now_here):
        notes.append(f"{name} was {then} when this was made and is {now} here.")
    return {
        "folder": str(folder),
        "receipt": digest_bytes(content),
        "signed_by": None if key is None else signatures.short(key),
        "differences": found,
        "notes": notes,
    }
