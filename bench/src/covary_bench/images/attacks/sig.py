"""SIG: a horizontal sinusoid under images of the target class, labels untouched (Barni et al., arXiv 1902.11237)."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from covary_bench.images.attacks.poisoning import Attack, Shape, Trigger

AMPLITUDE, FREQUENCY = 40.0, 6.0  # BackdoorBench's; of 255, and periods over the width


def make_sig(shape: Shape, seed: int) -> Trigger:
    """v(i, j) = D sin(2 pi j f / m), m columns, added to every channel and clipped (equation 1 of the paper)."""
    width = shape[1]
    wave = AMPLITUDE * np.sin(2 * np.pi * np.arange(width) * FREQUENCY / width)

    def add_wave(x: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
        return np.round(np.clip(x + wave[:, None], 0, 255)).astype(np.uint8)

    return add_wave


SIG = Attack(make_sig, clean_label=True)
