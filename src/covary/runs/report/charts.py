"""Inline SVG that keeps its text size at every width: text sits at percentages, shapes in a stretched frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float
from markupsafe import Markup

from covary.runs.report.axis import Axis, label

WIDTH = 1000  # of the stretched frame; a thousandth of the chart's width
STRETCHED = '<svg y="{0}" width="100%" height="{1}" viewBox="0 0 {2} {1}" preserveAspectRatio="none" class="{3}">'
Curve = Sequence[tuple[float, float]]
Ridge = tuple[str, str, Float[np.ndarray, " _"], Bool[np.ndarray, " _"]]
Range = Sequence[float | None] | None  # 1 %, 50 % and 99 % of the trusted samples in one layer


def ridges(rows: Sequence[Ridge], axis: Axis, threshold: float | None, threshold_label: str) -> Markup:
    """Histograms over each other on one axis; each row is (name, remark, scores, which of them count as flagged)."""
    bins, height, gap = 80, 54, 28
    edges = np.array([axis.inverse(i / bins) for i in range(bins + 1)])
    edges[0], edges[-1] = -np.inf, np.inf
    if threshold is not None and math.isfinite(threshold):
        # One edge moves onto the threshold, so that no bar straddles it; a score equal to it is not beyond it.
        nearest = min(max(int(np.abs(edges[1:-1] - threshold).argmin()) + 1, 1), bins - 1)
        edges[nearest] = np.nextafter(threshold, np.inf)
    positions = [0.0] + [axis(float(edge)) for edge in edges[1:-1]] + [1.0]
    parts: list[Markup] = []
    labels: list[Markup] = []  # drawn last: their halo keeps them readable over lines
    foot = 22 + len(rows) * (height + gap)
    for tick in axis.ticks():
        x = f"{100 * axis(tick):.2f}%"
        parts.append(Markup('<line class="grid" x1="{0}" x2="{0}" y1="18" y2="{1}"/>').format(x, foot))
        parts.append(_text(x, foot + 16, label(tick), _anchor(axis(tick)), "tick"))
    for i, (name, remark, scores, flagged) in enumerate(rows):
        top = 22 + i * (height + gap)
        everything = np.histogram(scores, edges)[0]
        calm = np.histogram(scores[~flagged], edges)[0]
        most = max(1, int(everything.max(initial=0)))
        parts.append(_frame(top + gap - 6, height, ""))
        # Flagged inputs sit on top of the calm ones of their bin, whose bar is drawn over the lower part.
        stacked = np.where(everything > calm, everything, 0) / most
        parts.append(Markup('<path class="flagged" d="{}"/>').format(_bars(positions, stacked, height)))
        parts.append(Markup('<path class="calm" d="{}"/>').format(_bars(positions, calm / most, height)))
        parts.append(Markup("</svg>"))
        base = top + gap - 6 + height
        parts.append(Markup('<line class="base" x1="0" x2="100%" y1="{0}" y2="{0}"/>').format(base))
        labels += [_text("0", top + 14, name, "start", "name"), _text("100%", top + 14, remark, "end", "remark")]
    if threshold is not None:
        at = axis(threshold)
        x = f"{100 * at:.2f}%"
        parts.append(Markup('<line class="threshold" x1="{0}" x2="{0}" y1="14" y2="{1}"/>').format(x, foot))
        parts.append(_text(x, 10, threshold_label, _anchor(at, 0.15), "threshold-label"))
    parts += labels
    names = "; ".join(f"{name}: {remark}" for name, remark, _, _ in rows)
    return _chart(f"Histograms of scores. {names}", foot + 22, parts)


def roc(curves: Sequence[tuple[str, Curve]]) -> Markup:
    """ROC curves with the false-positive rate on a logarithmic axis; each is (css class, points (fpr, tpr))."""
    positive = [fpr for _, curve in curves for fpr, _ in curve if fpr > 0]
    floor = 10.0 ** math.floor(math.log10(min(max(min(positive, default=1e-3), 1e-4), 1e-2)) + 1e-9)
    decades = -math.log10(floor)
    height = 240

    def across(fpr: float) -> float:
        return 1 + math.log10(min(1.0, max(fpr, floor))) / decades

    parts: list[Markup] = []
    for tpr in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = 8 + height * (1 - tpr)
        parts.append(Markup('<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(y))
        parts.append(_text("100%", y + 4, f"{100 * tpr:.0f}\u00a0%", "start", "tick", 6))
    for power in range(round(-decades), 1):
        fpr = 10.0**power
        x = f"{100 * across(fpr):.2f}%"
        parts.append(Markup('<line class="grid" x1="{0}" x2="{0}" y1="8" y2="{1}"/>').format(x, height + 8))
        parts.append(_text(x, height + 24, f"{100 * fpr:g}\u00a0%", _anchor(across(fpr)), "tick"))
    x = f"{100 * across(0.05):.2f}%"
    parts.append(Markup('<line class="grid dashed" x1="{0}" x2="{0}" y1="8" y2="{1}"/>').format(x, height + 8))
    parts.append(_text(x, height + 24, "5\u00a0%", "middle", "tick"))
    parts.append(_frame(8, height, "open"))
    for name, curve in curves:
        parts.append(Markup('<path class="curve {}" d="{}"/>').format(name, _steps(curve, across, height)))
    parts.append(Markup("</svg>"))
    return _chart("ROC: true-positive rate over false-positive rate", height + 30, parts)


def layer_ranges(ranges: Sequence[Range], axis: Axis, height: int) -> Markup:
    """The trusted range of every layer as one path of columns (1 % to 99 %) and one of medians, to be reused."""
    columns, medians = [], []
    for left, right, triple in _columns(ranges, 0.12):
        if triple is None or len(triple) != 3 or any(value is None for value in triple):
            continue
        low, middle, high = (height * (1 - axis(float(value or 0.0))) for value in triple)
        columns.append(f"M{left:.1f} {high:.1f}H{right:.1f}V{low:.1f}H{left:.1f}Z")
        medians.append(f"M{left:.1f} {middle:.1f}H{right:.1f}")
    form = Markup('<path class="range" d="{}"/><path class="median" d="{}"/>')
    return form.format("".join(columns), "".join(medians))


def layer_profile(
    values: Sequence[float | None], ranges: Sequence[Range], axis: Axis, height: int, name: str
) -> Markup:
    """One sample's number in every layer over the trusted ranges (`<use>` of `#range-NAME`); outside ones stand out."""
    inside, outside, stems = [], [], []
    padded = list(ranges) + [None] * (len(values) - len(ranges))
    for (left, right, triple), value in zip(_columns(padded[: len(values)], 0.5), values, strict=True):
        if value is None:
            continue
        x, y = (left + right) / 2, height * (1 - axis(value))
        edge = nearest_edge(value, triple)
        (inside if edge is None else outside).append(f"M{x:.1f} {y:.1f}h0")
        if edge is not None:
            stems.append(f"M{x:.1f} {height * (1 - axis(edge)):.1f}V{y:.1f}")
    parts: list[Markup] = []
    for tick in axis.ticks(0.16):
        y = 4 + height * (1 - axis(tick))
        parts.append(Markup('<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(y))
        parts.append(_text("100%", y + 4, label(tick), "start", "tick", 6))
    parts.append(_frame(4, height, "open"))
    parts.append(Markup('<line class="cursor" x1="-9" x2="-9" y1="0" y2="{}"/>').format(height))
    parts.append(Markup('<use href="#range-{}"/><path class="stem" d="{}"/>').format(name, "".join(stems)))
    parts.append(Markup('<path class="dot" d="{}"/>').format("".join(inside)))
    parts.append(Markup('<path class="dot out" d="{}"/></svg>').format("".join(outside)))
    text = f"{name} profile: {len(outside)} of {len(inside) + len(outside)} layers outside the trusted range"
    return _chart(text, height + 8, parts)


def nearest_edge(value: float, triple: Range) -> float | None:
    """The end of the trusted range that a value lies beyond, or None where it lies inside or no range is known."""
    if triple is None or len(triple) != 3 or triple[0] is None or triple[2] is None:
        return None
    return triple[0] if value < triple[0] else triple[2] if value > triple[2] else None


def bar(share: float, start: float = 0.0, css: str = "") -> Markup:
    """A horizontal bar from `start` over `share` of the width, both between 0 and 1."""
    start, share = min(1.0, max(0.0, start)), min(1.0, max(0.0, share))
    form = Markup(
        '<svg class="bar {}" width="100%" height="10" aria-hidden="true"><rect class="track" width="100%" height="10"/>'
        '<rect class="fill" x="{:.2f}%" width="{:.2f}%" height="10"/></svg>'
    )
    return form.format(css, 100 * start, 100 * share)


def spot(value: float, band: tuple[float, float] | None, axis: Axis, out: bool) -> Markup:
    """One value as a dot on an axis, over the band where most others lie."""
    parts = [Markup('<line class="base" x1="0" x2="100%" y1="8" y2="8"/>')]
    if band is not None:
        left, right = axis(band[0]), axis(band[1])
        parts.append(
            Markup('<rect class="range" x="{:.2f}%" width="{:.2f}%" y="2" height="12"/>').format(
                100 * left, 100 * (right - left)
            )
        )
    dot = Markup('<circle class="spot{}" cx="{:.2f}%" cy="8" r="4.5"/>')
    parts.append(dot.format(" out" if out else "", 100 * axis(value)))
    form = Markup('<svg class="chart" width="100%" height="16" aria-hidden="true">{}</svg>')
    return form.format(Markup("").join(parts))


def _frame(y: int, height: int, css: str) -> Markup:
    return Markup(STRETCHED).format(y, height, WIDTH, css)


def _columns(ranges: Sequence[Range], inset: float) -> Iterator[tuple[float, float, Range]]:
    step = WIDTH / max(1, len(ranges))
    for i, triple in enumerate(ranges):
        yield (i + inset) * step, (i + 1 - inset) * step, triple


def _bars(positions: Sequence[float], heights: Float[np.ndarray, " _"], height: int) -> str:
    path = []
    for left, right, share in zip(positions[:-1], positions[1:], heights, strict=True):
        if share > 0:
            # Rare scores are the point of the chart: a bar of one input keeps at least 1.5 pixels.
            y = height - max(1.5, height * float(share))
            path.append(f"M{WIDTH * left:.1f} {height}V{y:.1f}H{WIDTH * right:.1f}V{height}Z")
    return "".join(path)


def _steps(curve: Curve, across: Callable[[float], float], height: int) -> str:
    points = sorted(curve)
    kept = points if len(points) <= 600 else [points[int(i)] for i in np.linspace(0, len(points) - 1, 600)]
    path, last = [f"M0 {height * (1 - max([t for f, t in points if f <= 0], default=0.0)):.1f}"], ""
    for fpr, tpr in kept:
        step = f"H{WIDTH * across(fpr):.1f}V{height * (1 - min(1.0, max(0.0, tpr))):.1f}"
        path.append(step) if step != last and fpr > 0 else None
        last = step
    return "".join(path) + f"H{WIDTH}"


def _text(x: str, y: float | int, text: str, anchor: str, css: str, dx: int = 0) -> Markup:
    form = Markup('<text class="{}" x="{}" y="{:.1f}" dx="{}" text-anchor="{}">{}</text>')
    return form.format(css, x, y, dx, anchor, text)


def _anchor(position: float, margin: float = 0.04) -> str:
    return "start" if position < margin else "end" if position > 1 - margin else "middle"


def _chart(description: str, height: int, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="chart" width="100%" height="{}" role="img" aria-label="{}">').format(height, description)
    return head + Markup("").join(parts) + Markup("</svg>")

