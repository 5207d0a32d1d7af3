"""How charts of the documentation look: no ground of their own, and a grey that reads on a light and on a dark page."""

from __future__ import annotations

from typing import Any

GREY = "#808080"

STYLE: dict[Any, str] = {
    "svg.hashsalt": "covary",  # the same record draws the same file
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
}
