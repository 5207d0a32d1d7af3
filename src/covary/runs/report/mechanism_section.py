"""The report's section on mechanisms: how many there are, and each cluster with its members, in words."""

from __future__ import annotations

import re
from typing import Any

from covary.runs.report.card_section import phrases
from covary.runs.report.run_folder import RunFolder, items, number

IMAGE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+=*")


def headline(found: dict[str, Any]) -> str:
    """One sentence: how many mechanisms, and how many inputs stand alone."""
    n, flagged, alone = (int(number(found.get(key)) or 0) for key in ("n_mechanisms", "n_flagged", "alone"))
    if not flagged:
        return "Nothing was flagged, so there is nothing to tell apart."
    if not n:
        return f"No mechanism is shared by enough of the {flagged:,} flagged inputs."
    text = f"{n} mechanism{'s' if n > 1 else ''} behind {flagged:,} flagged inputs"
    return f"{text}; {alone:,} stand alone." if alone else f"{text}."


def line(cluster: dict[str, Any]) -> str:
    """One line of a cluster for the terminal."""
    return f"{cluster['number']}: {cluster['n']:,} inputs. {_text(cluster, lambda label: str(label))}"


def _text(cluster: dict[str, Any], name: Any) -> str:
    predicted = cluster.get("predicted") or {}
    classes = ", ".join(f"{name(label)} ({int(n):,})" for label, n in list(predicted.items())[:5])
    text = f"Predicted as {classes}. " if classes else ""
    text += f"Reads as {cluster.get('reading', 'unknown')}"
    axis = number(cluster.get("median_axis"))
    text += f" (median {axis:+.1f} on the second axis)." if axis is not None else "."
    layer = cluster.get("least_explained_layer")
    text += f" Least explained in {layer}." if layer else ""
    return f"{text} {phrases(cluster)}".rstrip()


def mechanisms(run: RunFolder) -> dict[str, Any] | None:
    """What the template shows; None where `covary mechanisms` has not been run."""
    if not run.mechanisms:
        return None
    drawn = []
    for cluster in items(run.mechanisms, "clusters"):
        if not isinstance(cluster, dict):
            continue
        members = [item for item in items(cluster, "shown") if isinstance(item, dict)]
        pictures = [
            {"id": str(item.get("id")), "thumbnail": uri if IMAGE.fullmatch(uri := str(item.get("thumbnail"))) else ""}
            for item in members
        ]
        n = int(number(cluster.get("n")) or 0)
        title = f"Mechanism {cluster.get('number')}: {n:,} input{'s' if n != 1 else ''}"
        more = max(0, n - len(pictures))
        drawn.append({"title": title, "text": _text(cluster, run.class_name), "shown": pictures, "more": more})
    return {"headline": headline(run.mechanisms), "clusters": drawn}
