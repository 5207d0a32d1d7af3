"""A saved detector: what it is made of, and how that lies in a folder of safetensors and JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from covary.errors import CovaryError
from covary.scoring.rows import SIGMA, Rows
from covary.scoring.rows.quantise import packed, unpacked
from covary.storage import folders
from covary.storage.fingerprints import digest_file, versions
from covary.storage.receipts import write_receipt
from covary.storage.signatures import read_public
from covary.storage.verify import check_unchanged

FORMAT = 2
RECORD = "detector.json"
WHAT = "a folder written by `covary fit`"
ROWS, THUMBNAILS, WEIGHTS = "rows.safetensors", "thumbnails.safetensors", "weights.safetensors"
DRAWS = "draws.safetensors"


@dataclass(frozen=True)
class Saved:
    """Everything a detector has learned; the judge is fitted again from the rows, which gives the same bits.

    Attributes:
        settings: its `Settings` as plain values.
        factory: `package.module:factory` of its network, None where a module was passed in.
        network: fingerprint of the network's weights and buffers.
        projection: what the random stream gave where it was fitted (see `projection_fingerprint`).
        preprocessing: what is done to raw inputs.
        classes: number of the network's outputs, 0 without classes.
        class_names: names of them, where the trusted data have some.
        input_shape: shape of one trusted input.
        trusted_fingerprint: of the trusted data.
        trusted: rows of the trusted inputs; calibration: of a separate calibration set.
        kind: key of its extractor.
        arrays: what its extractor keeps beside the rows; state: the same as JSON.
        write_file: writes a file of the extractor's own, such as the bank of draws.
        labels: classes of the trusted inputs, (n,), where known.
        calibration_scores: scores of the calibration samples, in order.
        roles: ids of the trusted inputs by role.
        thumbnails: small pictures of reference inputs, by id.
    """

    settings: dict[str, Any]
    factory: str | None
    network: str
    projection: str
    preprocessing: dict[str, Any]
    classes: int
    class_names: list[str] | None
    input_shape: list[int] | None
    trusted_fingerprint: str
    trusted: Rows
    calibration: Rows | None
    labels: np.ndarray | None
    calibration_scores: np.ndarray
    roles: dict[str, list[str]]
    thumbnails: dict[str, np.ndarray]
    kind: str = "gradient"
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    write_file: Callable[[Path], object] | None = None


def write_detector(folder: Path, saved: Saved, weights: Mapping[str, Any] | None, force: bool = False) -> None:
    """Writes a detector to `folder`, whole or not at all, with the network's state dict unless `weights` is None."""
    half = bool(saved.settings.get("half_rows"))
    arrays, trusted = rows_to_arrays(saved.trusted, "trusted", half)
    calibration = None
    if saved.calibration is not None:
        more, calibration = rows_to_arrays(saved.calibration, "calibration", half)
        arrays |= more
    if saved.labels is not None:
        arrays["labels"] = np.asarray(saved.labels, np.int64)
    arrays["calibration_scores"] = saved.calibration_scores
    arrays |= saved.arrays
    record = {
        "format": FORMAT,
        "settings": saved.settings,
        "factory": saved.factory,
        "fingerprint": saved.network,
        "projection": saved.projection,
        "preprocessing": saved.preprocessing,
        "class_names": saved.class_names,
        "classes": saved.classes,
        "input_shape": saved.input_shape,
        "trusted_fingerprint": saved.trusted_fingerprint,
        "trusted": trusted,
        "calibration": calibration,
        "roles": saved.roles,
        "kind": saved.kind,
        "extractor": saved.state,
        "versions": versions(),
    }
    with folders.atomic_folder(folder, "detector", force=force) as part:
        folders.write_arrays(part / ROWS, arrays)
        if saved.thumbnails:
            # Numbered, since an id may be anything.
            record["thumbnails"] = list(saved.thumbnails)
            folders.write_arrays(part / THUMBNAILS, {str(i): p for i, p in enumerate(saved.thumbnails.values())})
        if saved.write_file is not None:
            saved.write_file(part / DRAWS)
        if weights is not None:
            folders.write_tensors(part / WEIGHTS, weights)
        folders.seal(part, record, RECORD)
        write_receipt(part)


# What a record must hold, and how to tell; `read_detector` and what is built from it check the rest.
FIELDS: dict[str, Callable[[Any], bool]] = {
    "settings": lambda v: isinstance(v, dict) and is_count(v.get("seed")),
    "factory": lambda v: v is None or isinstance(v, str),
    "fingerprint": lambda v: isinstance(v, str),
    "projection": lambda v: isinstance(v, str),
    "preprocessing": lambda v: isinstance(v, dict),
    "class_names": lambda v: v is None or is_names(v),
    "classes": lambda v: is_count(v) and v < 1 << 32,
    "input_shape": lambda v: v is None or (isinstance(v, list) and all(map(is_count, v))),
    "trusted_fingerprint": lambda v: isinstance(v, str),
    "trusted": lambda v: is_rows(v),
    "calibration": lambda v: v is None or is_rows(v),
    "roles": lambda v: isinstance(v, dict) and all(map(is_names, v.values())),
    "sampling": lambda v: isinstance(v, dict),
    "thumbnails": lambda v: is_names(v),
    "versions": lambda v: isinstance(v, dict) and "torch" in v,
}
OPTIONAL = {"sampling": {}, "thumbnails": []}


def is_count(value: Any) -> bool:
    """A whole number from 0 on."""
    return type(value) is int and value >= 0


def is_names(value: Any) -> bool:
    """A list of texts."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def is_rows(value: Any) -> bool:
    """What `rows_to_arrays` says of rows."""
    lists = ("ids", "functional", "latent", "confidence")
    return isinstance(value, dict) and all(is_names(value.get(name)) for name in lists)


@contextmanager
def as_written(folder: Path, record: str = RECORD, what: str = WHAT, remedy: str = "fit again") -> Iterator[None]:
    """Tells in one sentence that a record which fits its own seal is still none that covary writes."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError, RuntimeError) as problem:
        reason = " ".join(str(problem).split())[:200] or type(problem).__name__
        found = f"{folder / record} is not as covary writes it ({reason})"
        raise CovaryError(found, what, remedy) from problem


def open_record(folder: Path, public_key: str | Path | None = None) -> dict[str, Any]:
    """What is told of a detector, after every byte of its folder has been checked, and who signed it if that is asked.

    Raises:
        CovaryError: a missing, damaged or foreign folder, another format, or a receipt or signature that does not fit.
    """
    record = folders.open_sealed(folder, RECORD, WHAT)
    if record.get("format") != FORMAT:
        written = record.get("versions")
        by = written.get("covary") if isinstance(written, dict) else None
        remedy = f"it was written by covary {by}; use that, or fit again"
        raise CovaryError(f"{folder} has format {record.get('format')}", f"format {FORMAT}", remedy)
    for name, fits in FIELDS.items():
        if not fits(record.get(name, OPTIONAL.get(name))):
            found = f"{folder / RECORD} says {name} = {str(record.get(name))[:80]!r}"
            raise CovaryError(found, WHAT, "fit again")
    # The seal has just read every file; the receipt need not read them again.
    key = None if public_key is None else read_public(Path(public_key))
    check_unchanged(Path(folder), {**record["files"], RECORD: digest_file(Path(folder) / RECORD)}, key)
    return record


def _former_state(record: Mapping[str, Any]) -> dict[str, Any]:
    """What detectors of before kept of their extractor beside everything else."""
    return {"sampling": record.get("sampling", {}), "survival": record.get("survival", {})}


def kind_of(record: Mapping[str, Any]) -> str:
    """Key of a saved detector's extractor; those of before it was recorded say it by what they hold."""
    if "kind" in record:
        return record["kind"]
    if "language" in record["preprocessing"]:
        return "text"
    return "sampled" if DRAWS in record["files"] else "gradient"


def read_detector(folder: Path, record: Mapping[str, Any]) -> Saved:
    """The detector of which `open_record` gave the record."""
    with as_written(Path(folder)):
        return _read(Path(folder), record)


def _read(folder: Path, record: Mapping[str, Any]) -> Saved:
    arrays = folders.read_arrays(folder / ROWS)
    names = record.get("thumbnails", [])
    pictures = folders.read_arrays(folder / THUMBNAILS) if names else {}
    calibration = record["calibration"]
    settings = record["settings"]
    if "kind" not in record and kind_of(record) == "text":
        settings = {**settings, "extractor": {**record["preprocessing"]["language"], "kind": "text"}}
    return Saved(
        settings=settings,
        factory=record["factory"],
        network=record["fingerprint"],
        projection=record["projection"],
        preprocessing=record["preprocessing"],
        classes=record["classes"],
        class_names=record["class_names"],
        input_shape=record["input_shape"],
        trusted_fingerprint=record["trusted_fingerprint"],
        trusted=rows_from_arrays(arrays, record["trusted"], "trusted"),
        calibration=None if calibration is None else rows_from_arrays(arrays, calibration, "calibration"),
        labels=arrays.get("labels"),
        calibration_scores=arrays["calibration_scores"],
        roles=record["roles"],
        thumbnails={name: pictures[str(i)] for i, name in enumerate(names)},
        kind=kind_of(record),
        arrays=arrays,
        state=record.get("extractor") or {**record["preprocessing"], **_former_state(record)},
    )


def rows_to_arrays(rows: Rows, prefix: str, half: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Rows as named arrays, in half the space where asked for, and the JSON that puts them together again."""
    arrays = {
        f"{prefix}.predicted": rows.predicted,
        f"{prefix}.observable": rows.observable,
        f"{prefix}.functional_norms": rows.functional_norms,
        **_parts(rows.functional, f"{prefix}.functional", half),
        **_parts(rows.latent, f"{prefix}.latent", half),
        **{f"{prefix}.confidence.{i}": part for i, part in enumerate(rows.confidence.values())},
    }
    if rows.features is not None:
        arrays |= _pair(f"{prefix}.features", rows.features, half)
    if rows.survival is not None:
        arrays[f"{prefix}.survival"] = rows.survival
    if rows.lengths is not None:
        arrays[f"{prefix}.lengths"] = rows.lengths
    names: dict[str, Any] = {
        "functional": list(rows.functional), "latent": list(rows.latent), "confidence": list(rows.confidence)
    }  # fmt: skip
    if rows.prompt is not None:
        more, names["prompt"] = rows_to_arrays(rows.prompt, f"{prefix}.prompt", half)
        arrays |= more
    return arrays, {"ids": list(rows.ids), "sigma": rows.sigma, **names}


def rows_from_arrays(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any], prefix: str) -> Rows:
    """Rows as they were given to `rows_to_arrays`."""
    return Rows(
        ids=record["ids"],
        predicted=arrays[f"{prefix}.predicted"],
        observable=arrays[f"{prefix}.observable"],
        functional={name: _part(arrays, f"{prefix}.functional.{i}") for i, name in enumerate(record["functional"])},
        functional_norms=arrays[f"{prefix}.functional_norms"],
        latent={name: _part(arrays, f"{prefix}.latent.{i}") for i, name in enumerate(record["latent"])},
        confidence={name: arrays[f"{prefix}.confidence.{i}"] for i, name in enumerate(record["confidence"])},
        features=_part(arrays, f"{prefix}.features") if f"{prefix}.features" in arrays else None,
        survival=arrays.get(f"{prefix}.survival"),
        sigma=record.get("sigma", SIGMA),
        prompt=rows_from_arrays(arrays, record["prompt"], f"{prefix}.prompt") if "prompt" in record else None,
        lengths=arrays.get(f"{prefix}.lengths"),
    )


def _parts(layers: Mapping[str, np.ndarray], prefix: str, half: bool) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for i, part in enumerate(layers.values()):
        found |= _pair(f"{prefix}.{i}", part, half)
    return found


def _pair(name: str, part: np.ndarray, half: bool) -> dict[str, np.ndarray]:
    if not half:
        return {name: part}
    numbers, scales = packed(part)
    return {name: numbers, f"{name}.scale": scales}


def _part(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    scales = arrays.get(f"{name}.scale")
    return arrays[name] if scales is None else unpacked(arrays[name], scales)
