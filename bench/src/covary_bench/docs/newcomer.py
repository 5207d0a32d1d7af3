"""The newcomer's list of docs/install.md: every command from nothing to a verdict, timed once."""

from __future__ import annotations

from typing import Any

PAGES = {
    "installing": "[Installing](install.md)",
    "vision": "[Vision](vision.md)",
    "tutorial": "[Tutorial](tutorial.md)",
}


def steps(record: dict[str, Any]) -> str:
    """Markdown: what was typed, where it stands, how long it took, and how many processes wanted the processor."""
    cores = record["cores"]
    lines = [f"| step | page | seconds | since the start | processes that wanted {cores} cores |", "| --- " * 5 + "|"]
    total = 0.0
    for step, page, seconds, load in record["steps"]:
        total += seconds
        name = f"**{step}**" if step == record["verdict"] else step
        lines.append(f"| {name} | {PAGES[page]} | {seconds:.0f} | {_clock(total)} | {load:.0f} |")
    return "\n".join(lines) + "\n"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02} s"
