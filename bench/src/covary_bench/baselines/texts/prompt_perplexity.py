"""Perplexity of the prompt: what optimisers write reads like noise (Alon and Kamfonas 2023, arXiv 2308.14132)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covary_bench.baselines.texts.material import TextMaterial


def prompt_perplexity(m: TextMaterial) -> Float[np.ndarray, " q"]:
    """-1/T sum_t log p(x_t | x_<t), in nats; higher = less foreseen, hence odder.

    Material of prompts alone, whose `log_p` are those of the prompt's own tokens (section 3 of the paper; its
    classifier on perplexity and length was trained on attacks, of which nobody here knows any). The model itself reads
    the prompt, where the paper had GPT-2.
    """
    return np.array([-float(np.mean(own)) for own in m.query_texts.log_p])
