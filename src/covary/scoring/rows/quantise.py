"""Rows in half the space: float16 numbers in units of each row's largest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from covary.scoring.rows import Rows, memmap


def packed(rows: Float[np.ndarray, "n k"]) -> tuple[np.ndarray, np.ndarray]:
    """(numbers (n, k) float16, scales (n,) float32); without the scales small gradients would fall under 6e-8."""
    scales = np.abs(rows).max(1, initial=0.0).astype(np.float32)
    safe = np.where(scales > 0, scales, np.float32(1))
    return (rows / safe[:, None]).astype(np.float16), scales


def unpacked(numbers: np.ndarray, scales: np.ndarray) -> Float[np.ndarray, "n k"]:
    """What `packed` was given, to a relative 2^-11 of each row's largest number."""
    return numbers.astype(np.float32) * scales.astype(np.float32)[:, None]


def quantise(rows: Rows) -> Rows:
    """The same rows as they will be when read again, so that verdicts before saving and after agree to the bit."""

    def each(layers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        result = {}
        for name, part in layers.items():
            to = memmap.mapped(part.shape, np.dtype(np.float32)) if memmap.is_mapped(part) else np.empty_like(part)
            for start in range(0, len(part), memmap.STEP):
                to[start : start + memmap.STEP] = unpacked(*packed(part[start : start + memmap.STEP]))
            result[name] = to
        return result

    features = None if rows.features is None else each({"": rows.features})[""]
    prompt = None if rows.prompt is None else quantise(rows.prompt)
    return replace(
        rows, functional=each(rows.functional), latent=each(rows.latent), features=features, prompt=prompt
    )
