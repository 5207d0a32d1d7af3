"""Blended injection with a random pattern (Chen et al., arXiv 1712.05526, section 4.1): x' = (1 - a) x + a r."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from covary_bench.images.attacks.poisoning import Attack, Shape, Trigger

ALPHA = 0.2


def make_blended(shape: Shape, seed: int) -> Trigger:
    """Blends every image with one picture of uniform noise; a = 0.2, as BackdoorBench uses it with another picture."""
    pattern = np.random.default_rng([seed, 1]).integers(0, 256, shape).astype(np.float64)

    def blend(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
        return np.round((1 - ALPHA) * x + ALPHA * pattern).astype(np.uint8)

    return blend


BLENDED = Attack(make_blended)
