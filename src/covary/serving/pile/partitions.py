"""How a pile is cut: partitions as JSON that any machine can read, and the plan that a resumed run must share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covary.data.readers.base import LeftOut
from covary.errors import CovaryError
from covary.objects import is_object_name
from covary.serving.pile import INPUTS_PER_PARTITION
from covary.serving.pile.output_store import OutputStore
from covary.serving.pile.sources import SOURCES, recognise
from covary.storage.fingerprints import canonical_json, digest_json, versions
from covary.storage.folders import HASH, RECEIPT, SIGNATURE, check_unsigned
from covary.storage.locks import is_temporary
from covary.storage.parts import REMEDY, is_moments, is_part
from covary.storage.verify import MISSING, differences

FORMAT = 3
PLAN, SUMMARY = "pile.json", "summary.json"
# What is made from the partitions, and made again.
DERIVED = (SUMMARY, "report.html", "mechanisms.json", RECEIPT, HASH, SIGNATURE)
# What decides the bits of a verdict and is not in the detector.
VERSIONS = ("covary", "torch", "numpy")


@dataclass(frozen=True)
class Pile:
    """A pile cut into partitions.

    Attributes:
        data: what the user named, local paths made absolute.
        kind: its name in `SOURCES`.
        parts: one JSON text a partition, in order.
        inputs: how many inputs there are, None where only reading tells.
        stored: bytes to be read.
        left_out: what lies there and gets no verdict.
    """

    data: str
    kind: str
    parts: list[str]
    inputs: int | None
    stored: int
    left_out: list[LeftOut] = field(default_factory=list)

    def digest(self) -> str:
        """sha256 over all partitions: names and boundaries, not contents, so that a broken file can be replaced."""
        digest = hashlib.sha256(self.kind.encode())
        for part in self.parts:
            where = {key: value for key, value in json.loads(part).items() if key != "bytes"}
            digest.update(canonical_json(where).encode() + b"\n")
        return digest.hexdigest()


def cut(data: str, size: int = INPUTS_PER_PARTITION) -> Pile:
    """Cuts what `data` names into partitions of at most `size` inputs (WebDataset: one a shard).

    The same files and the same size give the same partitions, on any machine.

    Raises:
        CovaryError: nothing there, or nothing that can be read.
    """
    if "://" not in data and not is_object_name(data):
        data = str(Path(data).absolute())
    kind, files, left_out = recognise(data)
    parts: list[str] = []
    inputs: int | None = 0
    stored = 0
    for part, n in SOURCES[kind].cut(data, files, size):
        parts.append(canonical_json(part))
        inputs = None if inputs is None or n is None else inputs + n
        stored += part["bytes"]
    if not parts:
        raise CovaryError(f"{data} is empty", "at least one input")
    return Pile(data, kind, parts, inputs, stored, left_out)


def plan_of(
    pile: Pile, detector: dict[str, Any], size: int, batch_size: int, threads: int, device: str, together: bool = False
) -> dict:
    """Everything that decides a verdict's bits and where it is written; `detector` as its record tells."""
    installed = versions()
    return {
        "format": FORMAT,
        "data": pile.data,
        "kind": pile.kind,
        "partitions": len(pile.parts),
        "inputs": pile.inputs,
        "listing": pile.digest(),
        "partition_size": size,
        "batch_size": batch_size,
        "threads": threads,
        "device": device.partition(":")[0],
        "detector": detector,
        "versions": {name: installed[name] for name in VERSIONS},
        **({"together": True} if together else {}),
    }


def begin(place: OutputStore, plan: dict[str, Any], force: bool = False) -> set[str]:
    """Takes a folder for a plan, or takes up the same plan's work; returns the partitions that are there.

    Where the work was finished, the folder is first compared with its receipt: only partitions may be missing. What is
    made from the partitions is then removed, to be made again.

    Args:
        place: the folder.
        plan: what is to be done.
        force: go on though the folder is signed.

    Raises:
        CovaryError: the folder holds something else, or another plan's partitions, or is not what its receipt says.
    """
    names = [name for name in place.names() if not is_temporary(name)]
    if strange := [name for name in names if not (name in (PLAN, *DERIVED) or is_part(name) or is_moments(name))]:
        found = f"{place.where} holds {strange[0]!r}, which is not part of a pile"
        raise CovaryError(found, EXPECTED, "choose another")
    if PLAN not in names:
        if names:
            raise CovaryError(f"{place.where} holds {names[0]!r} and no {PLAN}", EXPECTED, "choose another")
        place.write(PLAN, json.dumps(plan, indent=1, sort_keys=True).encode() + b"\n")
        return set()
    if place.local:
        check_unsigned(Path(place.root), "changed", force)
        if RECEIPT in names:
            _check_changed(Path(place.root))
    _check_other_plan(place, plan)
    for name in DERIVED:
        place.remove(name)
    return {name for name in names if is_part(name)}


EXPECTED = "a new folder, or one that `covary score` began to fill with partitions"


def _check_changed(folder: Path) -> None:
    for name, wrong in differences(folder):
        if not (is_part(name) and wrong == MISSING) and name != SIGNATURE:
            remedy = REMEDY if is_part(name) else "make the pile again in another folder"
            raise CovaryError(f"{folder} is not what its receipt says: {name} {wrong}", "", remedy)


def _check_other_plan(place: OutputStore, plan: dict[str, Any]) -> None:
    try:
        old = json.loads(place.read(PLAN))
    except (ValueError, RecursionError) as problem:
        raise CovaryError(f"{PLAN} of {place.where} is damaged ({problem})", "", "choose another folder") from problem
    for key in {**plan, **(old if isinstance(old, dict) else {})}:
        then = old.get(key) if isinstance(old, dict) else old
        if key not in plan or canonical_json(then) != canonical_json(plan[key]):
            raise CovaryError(
                f"{place.where} was begun with {key} {then}",
                f"{plan.get(key)}, as asked for now",
                "finish it as it was begun, or choose another out=",
            )


def plan_digest(plan: dict[str, Any]) -> str:
    """sha256 of a plan: every partition carries it."""
    return digest_json(plan)
