"""Axes of the charts: a monotone map from values to positions, and the round values to label on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Axis:
    """A monotone map from values to [0, 1], with a few round values to label.

    Attributes:
        low: smallest value, at 0.
        high: largest value, at 1.
        bend: width of the linear part of an asinh axis around `centre`; 0 for a linear axis.
        centre: middle of the linear part.
    """

    low: float
    high: float
    bend: float = 0.0
    centre: float = 0.0

    def __call__(self, value: float) -> float:
        """Position of a value, clipped to [0, 1]."""
        low, high = self._curve(self.low), self._curve(self.high)
        return min(1.0, max(0.0, (self._curve(value) - low) / (high - low)))

    def inverse(self, position: float) -> float:
        """The value at a position in [0, 1]."""
        low, high = self._curve(self.low), self._curve(self.high)
        level = low + position * (high - low)
        return self.centre + self.bend * math.sinh(level) if self.bend else level

    def ticks(self, gap: float = 0.12) -> list[float]:
        """Round values at least `gap` apart on the axis, the roundest first choice."""
        span = self.high - self.low
        if not self.bend:
            step = 10.0 ** math.floor(math.log10(span * gap))
            step *= next(m for m in (1, 2, 5, 10) if step * m >= span * gap)
            first = math.ceil(self.low / step - 1e-9)
            return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        top = math.ceil(math.log10(max(abs(self.low), abs(self.high), 1e-9)))
        sizes = [m * 10.0**k for m in (1, 5, 2) for k in range(top, top - 4, -1)]
        chosen: list[float] = []
        for value in [0.0] + [sign * size for size in sizes for sign in (1, -1)]:
            inside = self.low <= value <= self.high
            if inside and all(abs(self(value) - self(other)) >= gap for other in chosen):
                chosen.append(value)
        return sorted(chosen)

    def _curve(self, value: float) -> float:
        return math.asinh((value - self.centre) / self.bend) if self.bend else value


def axis_for(values: Float[np.ndarray, " n"], typical: Float[np.ndarray, " m"]) -> Axis:
    """An axis over all values: linear, or asinh around the typical ones where others lie more than 12 spreads away."""
    # No drawing needs more, and differences of what is clipped cannot overflow.
    values, typical = np.clip(values, -1e30, 1e30), np.clip(typical, -1e30, 1e30)
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9 * max(1.0, abs(high)):
        half = 0.5 * max(1.0, abs(high))
        low, high = low - half, high + half
    q05, centre, q95 = (float(q) for q in np.quantile(typical, [0.05, 0.5, 0.95]))
    spread = (q95 - q05) / 3.3
    bent = spread > 1e-6 * (high - low) and max(high - centre, centre - low) > 12 * spread
    tight = Axis(low, high, bend=2 * spread, centre=centre) if bent else Axis(low, high)
    return replace(tight, low=tight.inverse(-0.02), high=tight.inverse(1.02))


def label(value: float) -> str:
    """A tick's text, with a true minus sign."""
    return f"{value:,.10g}".replace("-", "\u2212")
