"""TeCo: a trigger makes robustness uneven over kinds of corruption (Liu et al. 2023, arXiv 2303.18191, section 4.2)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary_bench.baselines.material import Material
from covary_bench.images.graded_corruptions import GRADED


def teco(m: Material, strength: float = 1.0, levels: int = 5) -> Float[np.ndarray, " q"]:
    """Standard deviation over corruptions of the first severity (1..5, 6 = never) at which the prediction changes.

    Every corruption and severity starts from a fresh copy of the image. Of the paper's 15 corruptions those of
    `graded_corruptions.GRADED` are here; `strength` scales their severities.
    """
    probe = m.network
    before = probe.predicted(probe.queries)
    pixels = probe.queries.cpu().numpy()
    first = np.full((len(GRADED), len(pixels)), levels + 1)
    for position, corrupt in enumerate(GRADED.values()):
        for level in range(levels, 0, -1):
            changed = corrupt(pixels.copy(), strength * level / levels, m.seed + level)
            moved = probe.predicted(probe.queries.new_tensor(changed)) != before
            first[position, moved] = level
    return first.std(axis=0)
