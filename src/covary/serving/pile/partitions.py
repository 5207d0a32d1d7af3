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

FORMAT = 1
PLAN, SUMMARY = "pile.json", "summary.json"
# What decides the bits of a verdict and is not in the detector.
VERSIONS = ("covary", "torch", "numpy")


def part_name(number: int) -> str:
    """The file of a partition."""
    return f"part-{number:06d}.parquet"


def is_part(name: str) -> bool:
    """Whether a file is that of a partition."""
    return name.startswith("part-") and name.endswith(".parquet")


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


def plan_of(pile: Pile, detector: dict[str, Any], size: int, batch_size: int, threads: int, device: str) -> dict:
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
    }


def begin(place: OutputStore, plan: dict[str, Any]) -> set[str]:
    """Takes a folder for a plan, or takes up the same plan's work; returns the partitions that are there.

    Raises:
        CovaryError: the folder holds something else, or another plan's partitions.
    """
    names = place.names()
    if PLAN not in names:
        if strange := [name for name in names if not name.endswith(".part")]:
            raise CovaryError(
                f"{place.where} holds {strange[0]!r} and no {PLAN}",
                "a new folder, or one that `covary score` began to fill with partitions",
                "choose another",
            )
        place.write(PLAN, json.dumps(plan, indent=1, sort_keys=True).encode() + b"\n")
        return set()
    try:
        old = json.loads(place.read(PLAN))
    except ValueError as problem:
        raise CovaryError(f"{PLAN} of {place.where} is damaged ({problem})", "", "choose another folder") from problem
    for key in plan:
        if not isinstance(old, dict) or old.get(key) != plan[key]:
            then = old.get(key) if isinstance(old, dict) else old
            raise CovaryError(
                f"{place.where} was begun with {key} {then}",
                f"{plan[key]}, as asked for now",
                "finish it as it was begun, or choose another --out",
            )
    return {name for name in names if is_part(name)}


def plan_digest(plan: dict[str, Any]) -> str:
    """sha256 of a plan: every partition carries it."""
    return digest_json(plan)
