"""An exported detector: a graph, the rows that its judge is fitted on, and a record that seals both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from covary.errors import CovaryError
from covary.scoring.rows import Rows
from covary.storage import folders
from covary.storage.detector import is_count, is_names, is_rows, rows_from_arrays, rows_to_arrays
from covary.storage.fingerprints import digest_file, versions
from covary.storage.receipts import write_receipt
from covary.storage.signatures import read_public
from covary.storage.verify import check_unchanged

FORMAT = 1
RECORD, ROWS = "exported.json", "rows.safetensors"
WHAT = "a folder written by `covary export`"
# format -> the file of its graph.
GRAPHS = {"onnx": "network.onnx", "torchscript": "network.pt", "pt2": "network.pt2"}


@dataclass(frozen=True)
class Exported:
    """What a folder holds beside its graph.

    Attributes:
        record: as it was written: `settings`, `graph`, `preprocessing`, `layers` and more.
        trusted: rows of the trusted inputs; calibration: of a separate calibration set.
        labels: classes of the trusted inputs, (n,), where known.
        calibration_scores: of the detector that was exported, in order.
    """

    record: dict[str, Any]
    trusted: Rows
    calibration: Rows | None
    labels: np.ndarray | None
    calibration_scores: np.ndarray


def write_exported(
    folder: Path,
    exported: Exported,
    write_graph: Callable[[Path], object],
    force: bool = False,
) -> None:
    """Writes a folder, whole or not at all; `write_graph` writes the graph's files into it."""
    arrays, trusted = rows_to_arrays(exported.trusted, "trusted")
    calibration = None
    if exported.calibration is not None:
        more, calibration = rows_to_arrays(exported.calibration, "calibration")
        arrays |= more
    if exported.labels is not None:
        arrays["labels"] = np.asarray(exported.labels, np.int64)
    arrays["calibration_scores"] = exported.calibration_scores
    record = {**exported.record, "format": FORMAT, "trusted": trusted, "calibration": calibration}
    with folders.atomic_folder(folder, "export", force=force) as part:
        folders.write_arrays(part / ROWS, arrays)
        write_graph(part)
        folders.seal(part, {**record, "versions": versions()}, RECORD)
        write_receipt(part)


def _is_graph(value: Any) -> bool:
    return (
        isinstance(value, dict) and value.get("format") in GRAPHS and isinstance(value.get("input"), dict)
        and isinstance(value["input"].get("shape"), list) and all(map(is_count, value["input"]["shape"]))
        and isinstance(value["input"].get("pixels"), bool)
    )  # fmt: skip


FIELDS: dict[str, Callable[[Any], bool]] = {
    "settings": lambda v: isinstance(v, dict) and is_count(v.get("seed")),
    "graph": _is_graph,
    "layers": lambda v: isinstance(v, dict) and all(map(is_count, v.values())),
    "confidence": lambda v: is_names(v),
    "fingerprint": lambda v: isinstance(v, str),
    "trusted_fingerprint": lambda v: isinstance(v, str),
    "preprocessing": lambda v: isinstance(v, dict),
    "classes": is_count,
    "class_names": lambda v: v is None or is_names(v),
    "trusted": is_rows,
    "calibration": lambda v: v is None or is_rows(v),
    "roles": lambda v: isinstance(v, dict) and all(map(is_names, v.values())),
    "versions": lambda v: isinstance(v, dict),
}


def open_record(folder: Path, public_key: str | Path | None = None) -> dict[str, Any]:
    """What is told of an exported detector, after every byte of its folder has been checked, and who signed it.

    Raises:
        CovaryError: a missing, damaged or foreign folder, another format, or a receipt or signature that does not fit.
    """
    folder = Path(folder)
    record = folders.open_sealed(folder, RECORD, WHAT)
    if record.get("format") != FORMAT:
        raise CovaryError(f"{folder} has format {record.get('format')}", f"format {FORMAT}", "export again")
    for name, fits in FIELDS.items():
        if not fits(record.get(name)):
            found = f"{folder / RECORD} says {name} = {str(record.get(name))[:80]!r}"
            raise CovaryError(found, WHAT, "export again")
    key = None if public_key is None else read_public(Path(public_key))
    check_unchanged(folder, {**record["files"], RECORD: digest_file(folder / RECORD)}, key)
    return record


def read_exported(folder: Path, record: Mapping[str, Any]) -> Exported:
    """The rest of a folder of which `open_record` gave the record."""
    arrays = folders.read_arrays(Path(folder) / ROWS)
    calibration = record["calibration"]
    try:
        return Exported(
            record=dict(record),
            trusted=rows_from_arrays(arrays, record["trusted"], "trusted"),
            calibration=None if calibration is None else rows_from_arrays(arrays, calibration, "calibration"),
            labels=arrays.get("labels"),
            calibration_scores=arrays["calibration_scores"],
        )
    except (LookupError, TypeError, ValueError) as problem:
        found = f"{Path(folder) / ROWS} is not as covary writes it ({type(problem).__name__}: {problem})"
        raise CovaryError(found, WHAT, "export again") from problem


def describe(folder: str | Path) -> dict[str, Any]:
    """What an exported folder holds, once every byte of it has been checked, and what is left to do before the graph.

    Raises:
        CovaryError: the folder is no intact export.
    """
    folder = Path(folder)
    record = open_record(folder)
    return {
        "kind": "export",
        "folder": str(folder),
        "graph": record["graph"],
        "network": record["fingerprint"],
        "trusted": len(record["trusted"]["ids"]),
        "layers": len(record["layers"]),
        "numbers": sum(record["layers"].values()) + len(record["confidence"]),
        "before_the_graph": before(record),
        "settings": record["settings"],
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "versions": record["versions"],
    }


def before(record: dict[str, Any]) -> str:
    """What is done to raw inputs before the graph takes them, in words; mean and std are inside it."""
    steps = []
    if mode := record["preprocessing"].get("mode"):
        steps.append(f"images decoded as {mode}")
    if transform := record["preprocessing"].get("transform"):
        steps.append(f"transform {transform}")
    if not record["graph"]["input"]["pixels"]:
        steps.append("pixels of uint8 divided by 255, channels first")
    return ", ".join(steps)
