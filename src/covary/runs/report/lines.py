"""Curves along a chain: a few series over steps or draws, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from covary.runs.report import words
from covary.runs.report.axis import Axis, axis_for, label
from covary.runs.report.charts import WIDTH, _chart, _frame, _text

Series = Sequence[float | None]
COLOURS = 4


def lines(description: str, positions: Sequence[float], series: Sequence[Series], height: int = 96) -> Markup:
    """One curve a series over shared positions; a missing value leaves a gap. Colours repeat after four series."""
    known = np.array([value for own in series for value in own if value is not None], dtype=np.float64)
    upright = axis_for(known, known) if len(known) else Axis(0.0, 1.0)
    first, last = (positions[0], positions[-1]) if positions else (0.0, 1.0)
    span = max(last - first, 1e-9)
    parts: list[Markup] = []
    for tick in upright.ticks(0.3):
        y = 6 + height * (1 - upright(tick))
        parts.append(Markup('<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/>').format(y))
        parts.append(_text("100%", y + 4, label(float(f"{tick:.6g}")), "start", "tick", 6))
    parts += [
        _text("0", height + 22, words.count(first), "start", "tick"),
        _text("100%", height + 22, words.count(last), "end", "tick"),
        _frame(6, height, "open"),
    ]
    for i, own in enumerate(series):
        path, pen = [], "M"
        for position, value in zip(positions, own, strict=False):
            if value is None:
                pen = "M"
                continue
            path.append(f"{pen}{WIDTH * (position - first) / span:.1f} {height * (1 - upright(value)):.1f}")
            pen = "L"
        parts.append(Markup('<path class="along c{}" d="{}"/>').format(i % COLOURS, "".join(path)))
    parts.append(Markup("</svg>"))
    return _chart(description, height + 28, parts)
