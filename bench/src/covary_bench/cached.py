"""JSON in the cache: what earlier versions wrote still names the benchmark's modules as they were called then."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

# Factories of networks, by the modules they have lived in.
_FACTORY = re.compile(r'"covary[._]bench\.(victims|public|backdoorbench\.models):')


def read_cached(path: Path) -> dict[str, Any]:
    """The facts in `case.json` or `victim.json`; factories of earlier versions under their present names."""
    return json.loads(_FACTORY.sub(r'"covary_bench.images.\1:', path.read_text("utf-8")))
