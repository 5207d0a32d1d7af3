"""Reading a RUN folder: `results.csv` and three JSON files, in which any key may be missing or null."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from covary.errors import CovaryError
from covary.runs.folder.cells import from_cell
from covary.scoring.scores.parts import PARTS
from covary.storage.parts import read_all
from covary.storage.receipts import RECORDS

NUMBERS = ("score", "p_value", "kind_p", "unexplained", "predicted", "card", "y", "truth")
WORDS = ("raised_by", "kind", "least_explained_layer", "explained_by")


@dataclass(frozen=True)
class Results:
    """The columns of `results.csv`, in input order; a number that is missing or not finite is NaN.

    Attributes:
        ids: names of the inputs.
        flagged: verdicts, (n,).
        numbers: columns of numbers by name, each (n,); a column that the file lacks is all NaN.
        words: columns of text by name; a column that the file lacks is all empty.
    """

    ids: list[str]
    flagged: Bool[np.ndarray, " n"]
    numbers: dict[str, Float[np.ndarray, " n"]]
    words: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_truth(self) -> bool:
        """Whether the file says of any input that it is clean or anomalous."""
        return bool(np.isfinite(self.numbers["truth"]).any())


@dataclass(frozen=True)
class RunFolder:
    """What a finished run left behind: verdicts, summary, settings, and what the report needs beyond them."""

    path: Path
    results: Results
    summary: dict[str, Any]
    run: dict[str, Any]
    evidence: dict[str, Any]
    mechanisms: dict[str, Any] = field(default_factory=dict)
    cards: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """The run's own evidence parts by name: `title` of the column, `source`, and whether it is drawn by layer."""
        return _parts(self.run)

    @property
    def sampled(self) -> bool:
        """Whether scores come from traces along draws rather than from gradients."""
        return bool(section(self.evidence, "sampling"))

    def layers(self, family: str) -> list[str]:
        """Names of the layers in the order in which a family's per-layer lists are written."""
        # Runs of before named one list for all families, or one apart.
        own = items(section(self.evidence, "layers"), family) or items(self.evidence, f"{family}_layers")
        return [str(name) for name in own or items(self.evidence, "layers")]

    @property
    def layer_kinds(self) -> dict[str, Any]:
        """What each layer is, by its name."""
        return section(self.evidence, "layer_kinds")

    @property
    def ungrouped(self) -> bool:
        """Whether inputs are texts in one single group, so that a predicted class says nothing."""
        return section(section(self.run, "config"), "preprocessing").get("groups") == "none"

    def class_name(self, label: Any) -> str:
        """The name of a class where the run knows one, else its number; empty for None."""
        value = number(label)
        if value is None:
            return "" if label is None else str(label)
        names = items(self.run, "class_names")
        index = int(value)
        return str(names[index]) if 0 <= index < len(names) and index == value else f"{value:g}"


def read_run(path: Path) -> RunFolder:
    """Reads a RUN folder, or a finished pile; CovaryError where verdicts are missing or a file cannot be read."""
    if (path / RECORDS["pile"]).is_file():
        return _read_pile(path)
    if not (path / "results.csv").is_file():
        raise CovaryError(f"no results.csv in {path}", "a folder written by `covary scan`", "check the path")
    run = _read_json(path / "run.json")
    return RunFolder(
        path,
        _read_results(path / "results.csv", [*NUMBERS, *_parts(run)]),
        _read_json(path / "summary.json"),
        run,
        _read_json(path / "report.json"),
        _read_json(path / "mechanisms.json"),
        _read_json(path / "cards.json"),
    )


def _read_pile(path: Path) -> RunFolder:
    """A finished pile as a RUN: verdicts in memory, and of the rest what a pile records."""
    plan, summary = _read_json(path / RECORDS["pile"]), _read_json(path / "summary.json")
    table = read_all(path)
    if summary.get("n") != len(table):
        raise CovaryError(f"{path} is no finished pile", f"{len(table)} verdicts in its summary", "finish it first")
    columns = {name: table[name].to_pylist() for name in table.column_names}
    n, run = len(table), {name: plan.get(name) for name in ("versions",)}
    detector = section(plan, "detector")
    fingerprints = {name: detector.get(name) for name in ("network", "trusted")}
    run["fingerprints"] = {**fingerprints, "inputs": plan.get("listing")}
    settings = ("data", "kind", "partition_size", "batch_size", "threads", "device")
    run["config"] = {name: plan.get(name) for name in settings}
    nothing = [None] * n
    known = {name: [number(value) for value in columns.get(name, nothing)] for name in [*NUMBERS, *_parts(run)]}
    numbers = {name: np.array([math.nan if v is None else v for v in values]) for name, values in known.items()}
    words = {name: columns.get(name, [""] * n) for name in WORDS}
    results = Results(columns["id"], np.array(columns["flagged"], bool), numbers, words)
    return RunFolder(path, results, summary, run, {}, _read_json(path / "mechanisms.json"))


def number(value: Any) -> float | None:
    """A finite float, or None for anything else (None, text, NaN, infinity); true and false count as 1 and 0."""
    if value is None or isinstance(value, (list, dict)):
        return None
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def items(mapping: Any, key: str) -> list[Any]:
    """The list under a key, or an empty one where the mapping has none."""
    value = mapping.get(key) if isinstance(mapping, dict) else None
    return value if isinstance(value, list) else []


def section(mapping: Any, key: str) -> dict[str, Any]:
    """The dictionary under a key, or an empty one where the mapping has none."""
    value = mapping.get(key) if isinstance(mapping, dict) else None
    return value if isinstance(value, dict) else {}


def _parts(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    if not isinstance(run.get("parts"), list):  # a run of before they were recorded
        return {name: part.words() for name, part in PARTS.items()}
    named = [part for part in run["parts"] if isinstance(part, dict) and isinstance(part.get("name"), str)]
    return {part["name"]: {"title": part["name"], "source": f"the {part['name']}", **part} for part in named}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CovaryError(f"{path} is not readable JSON ({error})", "an intact run folder", "scan again") from error
    if not isinstance(value, dict):
        raise CovaryError(f"{path} holds a {type(value).__name__}", "a JSON object", "scan again")
    return value


def _read_results(path: Path, numeric: list[str]) -> Results:
    kept: dict[str, list[str]] = {name: [] for name in ("id", "flagged", *numeric, *WORDS)}
    n = 0
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            heads = next(rows, [])
            missing = [name for name in ("id", "score") if name not in heads]
            if missing:
                raise CovaryError(f"{path} has no column {missing[0]!r}", "columns id, score, …", "scan again")
            places = [(heads.index(name), column.append) for name, column in kept.items() if name in heads]
            for n, row in enumerate(filter(None, rows), 1):
                if len(row) != len(heads):
                    reason = f"row {n} of {path} has {len(row)} cells"
                    raise CovaryError(reason, f"{len(heads)}, as many as columns", "scan again")
                for place, append in places:
                    append(row[place])
    except (csv.Error, UnicodeDecodeError) as error:
        raise CovaryError(f"{path} is not readable CSV ({error})", "an intact run folder", "scan again") from error
    flagged = np.zeros(n, bool) if not kept["flagged"] else np.isin(np.char.lower(kept["flagged"]), ("true", "1"))
    numbers = {name: _floats(kept[name], n) for name in numeric}
    words = {name: [from_cell(cell) for cell in kept[name]] or [""] * n for name in WORDS}
    return Results([from_cell(cell) for cell in kept["id"]], flagged, numbers, words)


def _floats(texts: list[str], n: int) -> Float[np.ndarray, " n"]:
    if not texts:
        return np.full(n, np.nan)
    try:
        values = np.array(texts, dtype=np.float64)
    except ValueError:  # an empty or worded cell: slower, one by one
        values = np.array([math.nan if (value := number(text)) is None else value for text in texts])
    return np.where(np.isfinite(values), values, np.nan)
