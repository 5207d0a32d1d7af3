"""Are a RUN's network and data still those it was made from: opened again, their fingerprints taken again.

This runs the code that a RUN or a detector names as its network's factory; `covary.storage.verify` runs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from covary.detector import Detector
from covary.errors import CovaryError
from covary.objects import NotTrusted
from covary.runs.scan import Material, PileSettings, ScanPlan, additions, recorded, trusting, working_in
from covary.storage.receipts import kind_of


def source_differences(folder: Path, *, trust_code: bool = False) -> Iterator[tuple[str, str]]:
    """(name, what is wrong with it) of the network and the data whose fingerprints are not the recorded ones.

    A detector is loaded whole, which also computes its calibration scores again. Code that the folder names runs only
    with `trust_code`.
    """
    kind = kind_of(folder)
    if kind == "pile":
        raise CovaryError(f"{folder} is a pile", "a detector or a RUN", "verify the sources of its detector")
    if kind == "detector":
        try:
            Detector.load(folder, trust_code=trust_code)
        except NotTrusted:
            raise
        except CovaryError as problem:
            yield "network", str(problem)
        return
    record, plan = recorded(folder, trust_code)
    then = record["fingerprints"]
    with working_in(Path(record["folder"])):
        try:
            sources = _of_score(record, trust_code) if plan is None else _of_scan(plan)
        except NotTrusted:
            raise
        except CovaryError as problem:
            yield "config.detector", str(problem)
            return
        for name, now in sources.items():
            try:
                found = now()
            except CovaryError as problem:
                yield f"fingerprints.{name}", f"cannot be taken again: {problem}"
                continue
            if found != then.get(name):
                yield f"fingerprints.{name}", f"the RUN says {str(then.get(name))[:16]}, the source gives {found[:16]}"


def _of_scan(plan: ScanPlan) -> dict[str, Callable[[], str]]:
    material = Material(plan)

    def inputs() -> str:
        if material.inputs is None:
            raise CovaryError("the RUN names no inputs", "a RUN of `covary scan`", "scan again")
        return material.inputs.fingerprint()

    return {
        "network": lambda: material.detector.network.fingerprint,
        "trusted": lambda: material.trusted_fingerprint,
        "inputs": inputs,
    }


def _of_score(record: dict[str, Any], trust_code: bool) -> dict[str, Callable[[], str]]:
    config = record["config"]
    detector = trusting(Detector.load(config["detector"], trust_code=trust_code), additions(record))
    truth = PileSettings(truth=config.get("truth")).truth
    return {
        "network": lambda: detector.network.fingerprint,
        "trusted": lambda: detector.trusted_fingerprint,
        "inputs": lambda: detector.open(config["inputs"], truth=truth).fingerprint(),
    }
