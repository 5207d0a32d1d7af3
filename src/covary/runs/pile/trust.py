"""`covary trust`: inputs of a RUN that somebody found to be fine join the trusted set, and the scan runs again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from covary.detector import Detector
from covary.errors import CovaryError
from covary.runs import scan as scanning
from covary.runs.display import SILENT, Display
from covary.runs.pile.cards import members
from covary.runs.scan import Addition, Material, PileSettings, ScanPlan, additions, recorded, taken, working_in
from covary.storage.fingerprints import digest_file
from covary.storage.folders import RECEIPT


def trust(
    run: Path,
    out: Path,
    *,
    card: int | None = None,
    ids: Sequence[str] | None = None,
    display: Display = SILENT,
    trust_code: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Adds the members of a card, or the inputs of these ids, to the trusted set and scans again into `out`.

    Everything else is as in the RUN. The new RUN's receipt says who was added and from which RUN; a replay adds them
    again. What was added is then a copy of a trusted input and never flagged.

    Raises:
        CovaryError: neither or both of `card` and `ids`, a card or an id that the RUN does not have, or inputs that
            have changed since.
    """
    if (card is None) == (ids is None):
        raise CovaryError("both card= and ids=" if card is not None else "neither card= nor ids=", "one of them")
    out = out.absolute()
    record, plan = recorded(run, trust_code)
    config = record["config"]
    if "flagged_of" in config:
        raise CovaryError(f"the RUN is of what {config['flagged_of']} flagged", "a RUN of whole data")
    names = members(run, card) if card is not None else list(dict.fromkeys(ids or ()))
    if not names:
        raise CovaryError("no ids", "at least one input to trust")
    receipt = digest_file(run / RECEIPT) if (run / RECEIPT).is_file() else None
    new = Addition(run=run.absolute().name, receipt=receipt, inputs=config["inputs"], ids=names)
    added = [*(additions(record) if plan is None else plan.added), new]
    with working_in(Path(record["folder"])):
        _check_inputs(record, plan, names, trust_code)
        if plan is not None:
            return scanning.scan(plan.model_copy(update={"added": added}), out, display=display, force=force)
        requested = {name: config.get(name) for name in PileSettings.model_fields}
        return scanning.score(
            Path(config["detector"]), config["inputs"], out, added=added, trust_code=trust_code, force=force,
            display=display, **{name: value for name, value in requested.items() if value is not None},
        )  # fmt: skip


def _check_inputs(record: dict[str, Any], plan: ScanPlan | None, names: Sequence[str], trust_code: bool) -> None:
    """Refuses, before the long work, inputs that are others now and ids that are none."""
    config = record["config"]
    if plan is None:
        inputs = Detector.load(config["detector"], trust_code=trust_code).open(
            config["inputs"], truth=config.get("truth")
        )
    else:
        inputs = Material(plan).inputs
        assert inputs is not None
    if record["fingerprints"]["inputs"] != inputs.fingerprint():
        raise CovaryError(f"{inputs.name} has changed since the RUN", "the same inputs", "scan again")
    taken(inputs, names)


def read_ids(file: Path) -> list[str]:
    """Ids of a file, one a line; empty lines count for nothing.

    Raises:
        CovaryError: no readable text there.
    """
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        raise CovaryError(f"{file} cannot be read ({problem})", "a text file with one id a line") from None

