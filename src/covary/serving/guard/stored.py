"""A saved guard: the trusted rows of every look in a folder of safetensors and JSON; its scores are fitted again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from covary.errors import CovaryError
from covary.features.projections import projection_fingerprint
from covary.serving.guard.looks import Looks
from covary.storage import folders
from covary.storage.detector import as_written, is_count, is_names, is_rows, rows_from_arrays, rows_to_arrays
from covary.storage.fingerprints import digest_json, versions

if TYPE_CHECKING:
    from covary.detector import Detector

FORMAT = 1
RECORD, ROWS = "guard.json", "rows.safetensors"
WHAT = "a folder written by `Guard.save` or `covary guard`"
# Settings of a detector that decide no look's score.
FREE = ("fpr", "device", "batch_size", "per_class", "score", "coupling", "conformal")
FIELDS: dict[str, Callable[[Any], bool]] = {
    "detector": lambda v: isinstance(v, dict) and all(isinstance(one, str) for one in v.values()),
    "every": lambda v: is_count(v) and v >= 1,
    "looks": lambda v: isinstance(v, list) and bool(v) and all(map(is_rows, v)),
    "roles": lambda v: isinstance(v, dict) and all(map(is_names, v.values())),
}


def identity(detector: Detector) -> dict[str, str]:
    """What a guard's rows depend on, each as a fingerprint."""
    settings = {name: value for name, value in detector.settings.model_dump().items() if name not in FREE}
    tokens = [[one.id, list(one.ids), one.anchor] for one in detector.extractor.trusted_tokens]
    return {
        "network": detector.network.fingerprint,
        "trusted": digest_json(tokens),
        "settings": digest_json(settings),
        "projection": projection_fingerprint(detector.settings.seed),
    }


def write_guard(folder: Path, detector: Detector, every: int, looks: Looks, *, force: bool = False) -> None:
    """Writes what a guard has learned, whole or not at all."""
    arrays: dict[str, np.ndarray] = {"highest": looks.highest_}
    told = []
    for look, rows in enumerate(looks.rows):
        more, names = rows_to_arrays(rows, f"look.{look}")
        arrays |= more
        told.append(names)
    record = {
        "format": FORMAT, "detector": identity(detector), "every": every, "looks": told, "roles": looks.roles,
        "versions": versions(),
    }  # fmt: skip
    with folders.atomic_folder(folder, "guard", force=force) as part:
        folders.write_arrays(part / ROWS, arrays)
        folders.seal(part, record, RECORD)


def read_guard(folder: Path, detector: Detector) -> tuple[int, Looks]:
    """Tokens between two looks, and what was learned, once every byte of the folder has been checked.

    Raises:
        CovaryError: a missing, damaged or foreign folder, another format, a guard of another detector, or an
            installation that computes other scores from the same rows.
    """
    record = folders.open_sealed(folder, RECORD, WHAT)
    if record.get("format") != FORMAT:
        found = f"the guard in {folder} has format {record.get('format')}"
        raise CovaryError(found, f"format {FORMAT}", "use the covary that wrote it, or give another folder")
    for name, fits in FIELDS.items():
        if not fits(record.get(name)):
            found = f"{folder / RECORD} says {name} = {str(record.get(name))[:80]!r}"
            raise CovaryError(found, WHAT, "give another folder")
    own = identity(detector)
    if differing := [name for name, value in own.items() if record["detector"].get(name) != value]:
        found = f"the guard in {folder} is of another detector ({', '.join(differing)} differ)"
        raise CovaryError(found, "one of this detector", "give another folder")
    with as_written(folder, RECORD, WHAT, "give another folder"):
        arrays = folders.read_arrays(folder / ROWS)
        rows = [rows_from_arrays(arrays, names, f"look.{look}") for look, names in enumerate(record["looks"])]
        looks = Looks(rows, detector.settings.seed, record["roles"])
        same = np.allclose(looks.highest_, arrays["highest"], rtol=1e-4, atol=1e-4)
    if not same:
        found = "this installation computes other scores from the saved guard's rows"
        raise CovaryError(found, "the saved ones", "give another folder, and it is learned again")
    return record["every"], looks
