"""A table's record on disk: one line a cell and detector, with the figures that tables, plots and documentation use.

A line begins with the detector's place in `detectors`; its figures stand in the order of `columns`, times ten to
the power of `digits`.
Curves, and whatever else resuming needs, stay in the cache. Figures are kept to four or five digits after the point,
seconds to three in all; `rounded` does the same to figures at hand, so that a table looks the same from cache and file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from covary.errors import CovaryError
from covary.storage import folders
from covary_bench.scoring import OURS

Place = tuple[str | int, ...]
Cells = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Layout:
    """What is kept of a detector in a cell.

    Attributes:
        every: columns of every detector, name -> where it lies in the detector's figures.
        ours: further columns of our own score alone, which come last.
        shared: what is the same for all detectors of a cell and stands once beside them.
        blank: figures of which nothing is known.
        facts: what is kept of the cell itself.
    """

    every: Mapping[str, Place]
    ours: Mapping[str, Place]
    shared: Mapping[str, Place]
    blank: Mapping[str, Any]
    facts: Sequence[str]


def _view() -> dict[str, None]:
    return dict.fromkeys(("auroc", "auroc_interval", "tpr_at_1", "tpr_at_5", "tpr", "fpr", "der_calibrated", "der_best",
                          "n_clean", "n_anomalous"))  # fmt: skip


IMAGES = Layout(
    every={
        "auroc": ("masked", "auroc"), "auroc_all": ("end_to_end", "auroc"), "tpr_at_1": ("masked", "tpr_at_1"),
        "tpr_at_5": ("masked", "tpr_at_5"), "fpr": ("masked", "fpr"),
        "der_calibrated": ("masked", "der_calibrated"),
        "der_best": ("masked", "der_best"), "seconds": ("seconds_a_query",),
        "der_right": ("masked", "der_right"),
        "same_class": ("same_class", "auroc"),
    },
    ours={
        "auroc_low": ("masked", "auroc_interval", 0), "auroc_high": ("masked", "auroc_interval", 1),
        "rating": ("der", "calibrated"), "rating_best": ("der", "best"),
        "fpr_all": ("end_to_end", "fpr"),
    },
    shared={
        "clean": ("masked", "n_clean"), "anomalous": ("masked", "n_anomalous"), "ceiling": ("der", "ceiling"),
        "accuracy": ("der", "accuracy"), "attack_success": ("der", "attack_success"),
    },
    blank={"masked": _view(), "end_to_end": _view(), "same_class": None, "der": None, "seconds_a_query": None},
    facts=("missing", "errors", "victim", "distance", "ari", "ari_flagged", "ari_cards",
           "ari_cards_flagged", "cards_found", "mechanisms_found", "mechanisms_true",
           "n_flagged", "reached", "n_hard", "times_nominal", "second_axis_auroc", "second_axis_auroc_flagged",
           "score_auroc", "false_positive_rates", "cards", "cards_without", "n_trusted"),
)  # fmt: skip

KINDS = ("long", "held-out-task", "benign-reply")
TEXTS = Layout(
    every={
        "auroc": ("auroc",), "recall_at_1": ("recall_at_1pct_fpr",), "recall_at_5": ("recall_at_5pct_fpr",),
        "recall": ("calibrated", "1%", "recall"), "alarms": ("calibrated", "1%", "false_alarms"),
        "recall_5": ("calibrated", "5%", "recall"), "alarms_5": ("calibrated", "5%", "false_alarms"),
        "seconds": ("seconds_a_query",),
        **{f"{kind} {rate}": ("by_kind", kind, rate) for kind in KINDS for rate in ("1%", "5%")},
    },
    ours={"low": ("interval", 0), "high": ("interval", 1)},
    shared={"clean": ("n_clean",), "anomalous": ("n_anomalous",),
            **{f"n {kind}": ("by_kind", kind, "n") for kind in KINDS}},
    blank={"auroc": None, "interval": None, "recall_at_1pct_fpr": None, "recall_at_5pct_fpr": None,
           "calibrated": {"1%": {}, "5%": {}}, "by_kind": {}, "seconds_a_query": None},
    facts=("missing", "errors", "victim", "mechanisms", "mechanisms_together", "groups", "judged"),
)  # fmt: skip


def layout(table: str) -> Layout:
    """What is kept of the cells of that table."""
    return TEXTS if table == "language" else IMAGES


def rounded(found: Any, key: str = "", digits: int = 4) -> Any:
    """Figures as a record keeps them: `digits` after the point, of seconds three in all.

    Who is ahead is told to a thousandth, so AUROCs keep a digit more than shares of a few hundred inputs.
    """
    if isinstance(found, Mapping):
        return {name: rounded(value, str(name), digits) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [rounded(value, key, digits) for value in found]
    if isinstance(found, float):
        if "seconds" in key:
            return float(f"{found:.3g}")
        return round(found, digits + key.startswith("auroc"))
    return found


def write_lines(path: Path, found: Mapping[str, Any], depth: int = 2) -> None:
    """Writes any other record as JSON, whole or not at all; what is nested deeper than `depth` stands on one line."""

    def text(value: Any, level: int) -> str:
        if level >= depth or not isinstance(value, Mapping | list) or not value:
            return _json(value)
        pairs = isinstance(value, Mapping)
        parts = [f"{_json(k)}: {text(v, level + 1)}" for k, v in value.items()] if pairs else \
            [text(v, level + 1) for v in value]  # fmt: skip
        indent = "\n" + " " * (level + 1)
        return f"{'{' if pairs else '['}{indent}{f',{indent}'.join(parts)}\n{' ' * level}{'}' if pairs else ']'}"

    part = path.with_suffix(".json.part")
    part.write_text(text(dict(found), 0) + "\n", encoding="utf-8", newline="\n")
    part.rename(path)


def write_record(path: Path, head: Mapping[str, Any], cells: Cells) -> None:
    """Writes a record, whole or not at all; `head` has the table's name and main figures."""
    part = path.with_suffix(".json.part")
    part.write_text("\n".join(_lines(head, cells)) + "\n", encoding="utf-8", newline="\n")
    part.rename(path)


def _lines(head: Mapping[str, Any], cells: Cells) -> Iterator[str]:
    kept = layout(head["table"])
    found = [one for cell in cells.values() for one in cell.get("detectors", {}).values()]

    def there(columns: Mapping[str, Place]) -> list[str]:
        return [name for name, place in columns.items() if any(_at(one, place) is not None for one in found)]

    every, ours = there(kept.every), there(kept.ours)
    named = list(dict.fromkeys(name for cell in cells.values() for name in cell.get("detectors", {})))
    abouts: list[Any] = []
    for cell in cells.values():
        if "about" in cell and cell["about"] not in abouts:
            abouts.append(cell["about"])
    yield "{"
    for name, value in rounded(head).items():
        yield f"{_json(name)}:{_json(value)},"
    yield f'"columns":{_json([*every, *ours])},'
    yield f'"digits":{_json([_digits(name) for name in (*every, *ours)])},'
    yield f'"detectors":{_json(named)},'
    yield f'"about":{_json(abouts)},'
    yield '"cells":{'
    for last, (name, cell) in _ended(cells.items()):
        detectors = cell.get("detectors", {})
        facts = {key: cell[key] for key in kept.facts if cell.get(key) not in (None, {}, [])}
        facts["victim"] = plain(facts.get("victim"))
        mine = detectors.get(OURS, {})
        facts["n"] = {key: at for key, place in kept.shared.items() if (at := _at(mine, place)) is not None}
        if "about" in cell:
            facts["about"] = abouts.index(cell["about"])
        if "false_positive_rates" in facts:
            facts["false_positive_rates"] = _by_column(facts["false_positive_rates"], named)
        facts = {key: value for key, value in facts.items() if value not in (None, {}, [])}
        yield f'{_json(name)}:{{"facts":{_json(rounded(facts))},"detectors":['
        rows = []
        for detector, one in detectors.items():
            values = [_at(one, kept.every[column]) for column in every]
            values += [_at(one, kept.ours[column]) for column in ours] if detector == OURS else []
            while values and values[-1] is None:
                values.pop()
            names = [*every, *ours]
            values = [_whole(rounded(value, names[i]), _digits(names[i])) for i, value in enumerate(values)]
            rows.append(_json([named.index(detector), *values]))
        yield ",".join(rows) + "]}" + ("" if last else ",")
    yield "}"
    yield "}"


def _by_column(found: Mapping[str, Mapping[str, Any]], named: list[str]) -> dict[str, Any]:
    """Figures by detector and column as rows, each begun by the detector's place in `named`."""
    columns = list(dict.fromkeys(column for one in found.values() for column in one))
    rows = [[named.index(name), *(one.get(column) for column in columns)] for name, one in found.items()]
    return {"columns": columns, "rows": rows}


def _by_detector(found: Mapping[str, Any], named: list[str]) -> dict[str, dict[str, Any]]:
    """The other way round; what was not measured is left out."""
    result: dict[str, dict[str, Any]] = {}
    for number, *values in found["rows"]:
        pairs = zip(found["columns"], values, strict=True)
        result[named[number]] = {column: value for column, value in pairs if value is not None}
    return result


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _digits(column: str) -> int:
    """Digits after the point that a column is kept to: of seconds a millionth, which none is near."""
    return 6 if "seconds" in column else 4 + column.startswith("auroc")


def _whole(value: float | None, digits: int) -> float | int | None:
    """A figure without its point, which most of a record would be."""
    return None if value is None else round(value * 10**digits)


def _ended(items: Any) -> Iterator[tuple[bool, Any]]:
    every = list(items)
    for i, one in enumerate(every):
        yield i == len(every) - 1, one


def plain(victim: Mapping[str, Any] | None) -> dict[str, Any]:
    """A victim without what nothing tells: training checkpoints, times."""
    record = {
        key: value for key, value in (victim or {}).items() if key not in ("training_seconds", "seconds", "before")
    }
    attempts = [one for one in record.pop("attempts", None) or [] if isinstance(one, Mapping) and "strength" in one]
    return record | ({"attempts": attempts} if attempts else {})


def _at(found: Any, place: Place) -> Any:
    for key in place:
        try:
            found = found[key]
        except (KeyError, TypeError, IndexError):
            return None
    return found


def _put(found: Any, place: Place, value: Any) -> None:
    for key, after in pairwise(place):
        inner = found.get(key)
        if inner is None:
            inner = [None, None] if isinstance(after, int) else {}
            found[key] = inner
        found = inner
    found[place[-1]] = value


def read_record(path: Path) -> dict[str, Any]:
    """A record with its cells as a run has them, but for what is not kept.

    Raises:
        CovaryError: no such file, or one that is not a record.
    """
    record = folders.read_json(path, "a record of the benchmark")
    expected = {"columns": list, "digits": list, "detectors": list, "cells": dict}
    if not isinstance(record, dict) or any(not isinstance(record.get(k), kind) for k, kind in expected.items()):
        raise CovaryError(
            f"{path} has no cells by column", "a record of the benchmark", "move it away, or choose another --out"
        )
    kept = layout(record["table"])
    places = [{**kept.every, **kept.ours}[name] for name in record["columns"]]
    cells: dict[str, Any] = {}
    for name, own in record["cells"].items():
        facts = dict(own["facts"])
        shared = {kept.shared[key]: value for key, value in facts.pop("n", {}).items()}
        if "about" in facts:
            facts["about"] = record["about"][facts["about"]]
        if "false_positive_rates" in facts:
            facts["false_positive_rates"] = _by_detector(facts["false_positive_rates"], record["detectors"])
        cells[name] = {"cell": name, "victim": {}, **facts}
        for number, *values in own["detectors"]:
            one = deepcopy(dict(kept.blank))
            for place, digits, value in zip(places, record["digits"], values, strict=False):
                if value is not None:
                    _put(one, place, value / 10**digits)
            for place, value in shared.items():
                # Shared figures complete a view; they do not bring one that this detector has not got.
                if _at(one, place[:1]) is not None or len(place) == 1:
                    _put(one, place, value)
            cells[name].setdefault("detectors", {})[record["detectors"][number]] = one
    return {**record, "cells": cells}
