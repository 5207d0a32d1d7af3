"""The evidence for one input, ready to be shown: its parts, layers, classes, and the trusted samples nearest to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from covary.runs.report import charts
from covary.runs.report.answers import answer, beside, prompt
from covary.runs.report.axis import Axis, axis_for
from covary.runs.report.run_folder import RunFolder, items, number, section
from covary.runs.report.words import layer, p_value, signed, whole_percent

PROFILE_HEIGHT = 112
MAX_CLASSES = 8
MAX_TEXT = 2000
MAX_TRUSTED_TEXT = 600
# Nothing but a base64 raster image ever reaches an <img>, whatever the run folder holds.
IMAGE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+=*")


@dataclass(frozen=True)
class Scales:
    """What all panels share, so that one can be compared with the next: axes, and the ranges of unflagged inputs."""

    parts: Axis
    bands: dict[str, tuple[float, float]]
    layers: dict[str, Axis]
    ranges: dict[str, list[Any]]


def panels(run: RunFolder) -> dict[str, Any]:
    """Panels of the flagged inputs and of a few unflagged ones, with the shared drawings and numbers behind them."""
    flagged = [entry for entry in items(run.evidence, "flagged") if isinstance(entry, dict)]
    clean = [entry for entry in items(run.evidence, "clean_examples") if isinstance(entry, dict)]
    scales = _scales(run, flagged + clean)
    views = [_panel(run, scales, entry, i, i < len(flagged)) for i, entry in enumerate(flagged + clean)]
    drawings = {
        name: charts.layer_ranges(scales.ranges[name], axis, PROFILE_HEIGHT) for name, axis in scales.layers.items()
    }
    return {
        "flagged": views[: len(flagged)],
        "clean": views[len(flagged) :],
        "ranges": drawings,
        "bands": bool(scales.bands),
        "data": {
            "layers": {name: [layer(own, run.layer_kinds) for own in run.layers(name)] for name in scales.layers},
            "ranges": {name: scales.ranges[name] for name in scales.layers},
            "values": [{name: _numbers(entry, name) for name in scales.layers} for entry in flagged + clean],
        },
    }


def image(value: Any) -> str | None:
    """A base64 data URI of a raster image, unchanged; None for anything else."""
    return value if isinstance(value, str) and IMAGE.fullmatch(value) else None


def holders(run: RunFolder) -> list[dict[str, Any]]:
    """The trusted inputs that hold the threshold, ready to be shown."""
    return [
        {
            "id": _text(entry.get("id")),
            "score": signed(number(entry.get("score"))),
            "thumbnail": image(entry.get("thumbnail")),
            "text": _text(entry.get("text"))[:MAX_TRUSTED_TEXT],
        }
        for entry in items(run.evidence, "threshold_held_by")
        if isinstance(entry, dict)
    ]


def _scales(run: RunFolder, entries: list[dict[str, Any]]) -> Scales:
    results = run.results
    empty = np.empty(0)
    stacked = np.concatenate([empty, *(results.numbers[name] for name in run.parts)])
    calm = np.concatenate([empty, *(results.numbers[name][~results.flagged] for name in run.parts)])
    found = [number(section(entry, "parts").get(name)) for entry in entries for name in run.parts]
    known = [value for value in found if value is not None]
    stacked, calm = np.append(stacked[np.isfinite(stacked)], known), calm[np.isfinite(calm)]
    bands = {}
    for name in run.parts:
        values = results.numbers[name][~results.flagged]
        values = values[np.isfinite(values)]
        if len(values) >= 20:
            bands[name] = (float(np.quantile(values, 0.01)), float(np.quantile(values, 0.99)))
    layers, ranges = {}, {}
    for family in (name for name, part in run.parts.items() if part.get("layered")):
        ranges[family] = [_triple(value) for value in items(section(run.evidence, "layer_range"), family)]
        trusted = np.array([v for triple in ranges[family] if triple for v in triple], dtype=np.float64)
        own = np.array([v for entry in entries for v in _numbers(entry, family) if v is not None], dtype=np.float64)
        if len(own):
            layers[family] = axis_for(np.append(own, trusted), trusted if len(trusted) else own)
    parts = axis_for(stacked, calm if len(calm) else stacked) if len(stacked) else Axis(-1.0, 1.0)
    return Scales(parts, bands, layers, ranges)


def _panel(run: RunFolder, scales: Scales, entry: dict[str, Any], index: int, flagged: bool) -> dict[str, Any]:
    unexplained = number(entry.get("unexplained"))
    raised_by = _text(entry.get("raised_by")) if flagged else ""
    text = entry.get("text")
    return {
        "index": index,
        "flagged": flagged,
        "id": _text(entry.get("id")),
        "score": signed(number(entry.get("score"))),
        "p_value": p_value(number(entry.get("p_value"))),
        "predicted": "" if run.ungrouped else run.class_name(entry.get("predicted")),
        "raised_by": raised_by,
        "thumbnail": image(entry.get("thumbnail")),
        "text": text[:MAX_TEXT] if isinstance(text, str) else None,
        "text_cut": isinstance(text, str) and len(text) > MAX_TEXT,
        "answer": answer(entry),
        "prompt": prompt(entry),
        "beside": beside(entry),
        "unexplained": whole_percent(unexplained) if unexplained is not None else "",
        "unexplained_bar": charts.bar(unexplained, css="accent" if flagged else "") if unexplained is not None else "",
        "sentence": _sentence(run, scales, entry, raised_by, unexplained),
        "trusted": _trusted(run, entry),
        "columns": _columns(entry),
        "more_columns": max(0, int(number(entry.get("n_columns")) or 0) - len(items(entry, "columns"))),
        "parts": _parts(run, scales, entry, raised_by),
        "classes": [] if run.ungrouped else _classes(run, entry),
        "more_classes": max(0, len(items(entry, "classes")) - MAX_CLASSES),
        "profiles": _profiles(run, scales, entry),
    }


def _sentence(run: RunFolder, scales: Scales, entry: dict[str, Any], raised_by: str, unexplained: float | None) -> str:
    sentences = []
    if copied := _text(entry.get("copy_of")):
        sentences.append(f"A copy of the trusted input {copied}: closer to it than trusted inputs are to each other.")
    if raised_by:
        # The layer that the part's own chart calls the furthest, so that the two never name different ones.
        beyond = _outside(_numbers(entry, raised_by), scales.ranges.get(raised_by, []))
        layers = run.layers(raised_by)
        where = f", most of all in {_layer(run, layers, max(beyond)[1])}" if beyond else ""
        sentences.append(f"The {raised_by} part raised the alarm{where}.")
    kind, p = _text(entry.get("kind")), number(entry.get("kind_p"))
    if kind and p is not None and entry.get("flagged") and not entry.get("copy_of"):
        sentences.append(f"It reads as {kind} (p = {p_value(p)}).")
    if unexplained is not None:
        share = f"{whole_percent(unexplained)} of its {'trace' if run.sampled else 'gradient'}"
        sentences.append(f"{share} is unexplained by the best mix of trusted samples.")
    return " ".join(sentences)


def _layer(run: RunFolder, layers: list[str], i: int) -> str:
    return layer(layers[i], run.layer_kinds) if i < len(layers) else f"layer number {i + 1}"


def _columns(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The most influential columns of a table's row: name, value, and how much it adds to what is explained."""
    rows = [row for row in items(entry, "columns") if isinstance(row, list) and len(row) == 3]
    most = max((abs(number(row[2]) or 0.0) for row in rows), default=0.0)
    return [
        {
            "name": _text(row[0]),
            "value": f"{value:.4g}" if (value := number(row[1])) is not None else "–",
            "influence": signed(number(row[2])) if number(row[2]) is not None else "",
            "bar": charts.bar(abs(number(row[2]) or 0.0) / most, css="accent" if (number(row[2]) or 0.0) < 0 else "")
            if most > 0
            else "",
        }
        for row in rows
    ]


def _trusted(run: RunFolder, entry: dict[str, Any]) -> list[dict[str, Any]]:
    found = [item for item in items(entry, "explained_by") if isinstance(item, dict)]
    most = max((number(item.get("weight")) or 0.0 for item in found), default=0.0)
    return [
        {
            "id": _text(item.get("id")),
            "thumbnail": image(item.get("thumbnail")),
            "text": _text(item.get("text"))[:MAX_TRUSTED_TEXT],
            "predicted": "" if run.ungrouped else run.class_name(item.get("predicted")),
            "weight": signed(number(item.get("weight"))),
            "cosine": signed(number(item.get("cosine"))),
            "bar": charts.bar((number(item.get("weight")) or 0.0) / most if most > 0 else 0.0),
        }
        for item in found[:5]
    ]


def _parts(run: RunFolder, scales: Scales, entry: dict[str, Any], raised_by: str) -> list[dict[str, Any]]:
    drawn = []
    for name in run.parts:
        value = number(section(entry, "parts").get(name))
        if value is not None:
            band = scales.bands.get(name)
            # Of a flagged input the part that raised the alarm stands out, as the sentence says.
            out = name == raised_by if raised_by else band is not None and value > band[1]
            drawing = charts.spot(value, band, scales.parts, out)
            drawn.append({"name": name, "value": signed(value), "drawing": drawing, "out": out})
    return drawn


def _classes(run: RunFolder, entry: dict[str, Any]) -> list[dict[str, Any]]:
    pairs = [pair for pair in items(entry, "classes") if isinstance(pair, list) and len(pair) == 2]
    known = [(name, value) for name, value in ((pair[0], number(pair[1])) for pair in pairs) if value is not None]
    known.sort(key=lambda pair: -pair[1])
    own = entry.get("predicted")
    top = known[:MAX_CLASSES]
    if own is not None and all(name != own for name, _ in top):
        top = top[:-1] + [pair for pair in known if pair[0] == own] if len(known) > MAX_CLASSES else top
    low = min([0.0] + [value for _, value in known])
    span = max([1e-9] + [value for _, value in known]) - low
    return [
        {
            "name": run.class_name(name),
            "value": signed(value),
            "own": own is not None and name == own,
            "bar": charts.bar(abs(value) / span, (min(value, 0.0) - low) / span, "own" if name == own else ""),
        }
        for name, value in top
    ]


def _profiles(run: RunFolder, scales: Scales, entry: dict[str, Any]) -> list[dict[str, Any]]:
    drawn = []
    for family, axis in scales.layers.items():
        values = _numbers(entry, family)
        if any(value is not None for value in values):
            ranges = scales.ranges[family]
            drawing = charts.layer_profile(values, ranges, axis, PROFILE_HEIGHT, family)
            readout = _furthest(run, family, values, ranges)
            part = run.parts[family]
            title = f"{part['title']} evidence: {part['source']}"
            drawn.append({"family": family, "title": title, "drawing": drawing, "readout": readout})
    return drawn


def _outside(values: list[float | None], ranges: list[Any]) -> list[tuple[float, int, float, Any]]:
    """(how far outside, position, value, trusted range) of the layers that lie outside their trusted range."""
    beyond = []
    for i, value in enumerate(values):
        triple = ranges[i] if i < len(ranges) else None
        edge = charts.nearest_edge(value, triple) if value is not None else None
        if value is not None and edge is not None:
            beyond.append((abs(value - edge), i, value, triple))
    return beyond


def _furthest(run: RunFolder, family: str, values: list[float | None], ranges: list[Any]) -> str:
    beyond = _outside(values, ranges)
    if not beyond:
        return "No layer outside the trusted range." if any(ranges) else "No trusted range was recorded."
    _, i, value, (low, _, high) = max(beyond)
    name = _layer(run, run.layers(family), i)
    outside = f"{len(beyond)} of {len(values)} layers outside the trusted range"
    return f"{outside}; furthest: {name} at {signed(value)} (trusted {signed(low)} to {signed(high)})."


def _numbers(entry: dict[str, Any], family: str) -> list[float | None]:
    values = [number(value) for value in items(section(entry, "layers"), family)]
    return [None if value is None else float(f"{value:.4g}") for value in values]


def _triple(value: Any) -> list[float] | None:
    if not isinstance(value, list) or len(value) != 3:
        return None
    low, middle, high = (number(v) for v in value)
    return None if low is None or middle is None or high is None else [low, middle, high]


def _text(value: Any) -> str:
    return "" if value is None else str(value)
