"""covary: was this output produced by the mechanism that produces the outputs you trust?

The main road
    Detector            fit(trusted) -> score(inputs) -> save(folder) / load(folder)
    Verdicts            score, p-value and verdict of every input
    Evidence            trusted samples behind a verdict
    Monitor             outputs and verdicts from one pass, beside a live model
By kind of evidence
    Rows, SCORES, COUPLINGS, OBSERVABLES, SPACES
Errors
    CovaryError
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from covary.data.source import Source, open_data
    from covary.detector import Detector
    from covary.errors import CovaryError
    from covary.features.observables import OBSERVABLES
    from covary.models.network import load_network
    from covary.models.spaces import SPACES
    from covary.scoring.couplings import COUPLINGS
    from covary.scoring.evidence import Evidence
    from covary.scoring.judge import Judge, Verdicts
    from covary.scoring.rows import Batch, Rows
    from covary.scoring.scores import SCORES
    from covary.serving.monitor import Monitor

__version__ = "0.1.0"

# Resolved on first use, so that `import covary` and `covary --help` load no torch.
_HOMES = {
    "Detector": "detector",
    "Verdicts": "scoring.judge",
    "Judge": "scoring.judge",
    "Evidence": "scoring.evidence",
    "Monitor": "serving.monitor",
    "Rows": "scoring.rows",
    "Batch": "scoring.rows",
    "Source": "data.source",
    "open_data": "data.source",
    "load_network": "models.network",
    "SCORES": "scoring.scores",
    "COUPLINGS": "scoring.couplings",
    "OBSERVABLES": "features.observables",
    "SPACES": "models.spaces",
    "CovaryError": "errors",
}

__all__ = [
    "COUPLINGS",
    "OBSERVABLES",
    "SCORES",
    "SPACES",
    "Batch",
    "CovaryError",
    "Detector",
    "Evidence",
    "Judge",
    "Monitor",
    "Rows",
    "Source",
    "Verdicts",
    "__version__",
    "load_network",
    "open_data",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'covary' has no attribute {name!r}")
    return getattr(importlib.import_module(f"covary.{_HOMES[name]}"), name)
