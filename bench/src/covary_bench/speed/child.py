"""The environment of a measurement in a process of its own, of this Python or of another one."""

from __future__ import annotations

import os
from pathlib import Path

import covary


def environment() -> dict[str, str]:
    """This process's own, in which covary and its benchmark are imported from where they lie, installed or not."""
    sources = Path(covary.__file__).parents[1], Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sources))}
