"""How long the prompt is, a control: where this tells, length alone does."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary_bench.baselines.texts.material import TextMaterial


def prompt_length(m: TextMaterial) -> Float[np.ndarray, " q"]:
    """Tokens of the prompt's own, of material of prompts alone; longer = odder."""
    return np.array([float(len(own)) for own in m.query_texts.log_p])
