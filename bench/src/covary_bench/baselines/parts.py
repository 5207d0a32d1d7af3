"""Each part of the combined score alone, and the plain sum of the three: which of them does the work."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary.scoring.scores.parts import Part
from covary_bench.baselines.material import Material


def part_alone(m: Material, kind: str) -> Float[np.ndarray, " q"]:
    """Standardised log distance of `functional`, `latent` or `confidence` evidence; higher = more anomalous."""
    return Part(kind).fit(*m.roles).measure(m.queries)[0]
