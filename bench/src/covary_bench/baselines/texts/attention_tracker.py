"""Attention Tracker: an injected order draws the last token's attention off the instruction (2411.00348)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from covary_bench.baselines.texts.material import TextMaterial

DEVIATIONS = (4, 3, 2, 1, 0)


def focus(
    attention: Float[np.ndarray, "heads t"], instruction: Sequence[int], data: Sequence[int]
) -> Float[np.ndarray, " heads"]:
    """Attention of the last position to the instruction's tokens, as a share of that to instruction and data.

    Each in [0, 1]; the paper's sum over the instruction, divided as its authors' code divides it, so that a start
    token on which attention piles up does not matter.
    """
    own, other = attention[:, list(instruction)].sum(1), attention[:, list(data)].sum(1)
    return own / np.maximum(own + other, 1e-12)


def important_heads(
    plain: Float[np.ndarray, "n heads"], ordered: Float[np.ndarray, "m heads"]
) -> Bool[np.ndarray, " heads"]:
    """Heads whose focus an order in the data lowers: mean - k sd of plain ones above mean + k sd of ordered ones.

    k = 4 as published; where no head is that clear the largest k of 3, 2, 1, 0 that leaves one, or else the clearest.
    """
    for k in DEVIATIONS:
        apart = plain.mean(0) - k * plain.std(0) - (ordered.mean(0) + k * ordered.std(0))
        if (apart > 0).any():
            return apart > 0
    clearest = plain.mean(0) - ordered.mean(0)
    return clearest == clearest.max()


def attention_tracker(m: TextMaterial) -> Float[np.ndarray, " q"]:
    """1 - the mean focus of the important heads, in [0, 1]; higher = more distracted, hence odder.

    `focus` of the material holds those heads, chosen on made sentences with and without an order (see
    `important_heads`). The conversation's system turn stands for the instruction and the user's turn for the data,
    since a jailbreak has no data apart.
    """
    found = m.query_texts.focus
    assert found is not None
    return 1 - found.mean(1)
