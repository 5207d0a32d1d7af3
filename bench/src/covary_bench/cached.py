"""JSON in the cache: what earlier versions wrote still names the benchmark's modules as they were called then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_cached(path: Path) -> dict[str, Any]:
    """The facts in `case.json` or `victim.json`; factories called `covary.bench...` under their present names."""
    return json.loads(path.read_text("utf-8").replace('"covary.bench.', '"covary_bench.'))
