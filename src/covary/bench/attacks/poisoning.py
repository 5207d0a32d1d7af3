"""What a poisoning attack is, and how it changes a training set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8

Trigger = Callable[[UInt8[np.ndarray, "n h w c"]], UInt8[np.ndarray, "n h w c"]]
Shape = tuple[int, int, int]  # height, width, channels


@dataclass(frozen=True)
class Attack:
    """One recipe for a backdoor.

    Attributes:
        make: (shape of an image, seed) -> its trigger; the same seed gives the same trigger.
        ratio: poisoned fraction of the training set.
        clean_label: poison images of the target class only and keep every label.
        make_noise: (shape, seed, seed of the noise) -> a near-trigger whose images keep their label, so that
            only the trigger itself works; or None.
        noise_ratio: fraction of the training set that gets it.
        fresh: draw the poisoned images anew every epoch instead of once.
    """

    make: Callable[[Shape, int], Trigger]
    ratio: float = 0.1
    clean_label: bool = False
    make_noise: Callable[[Shape, int, int], Trigger] | None = None
    noise_ratio: float = 0.0
    fresh: bool = False


def poison(
    x: UInt8[np.ndarray, "n h w c"],
    y: Int[np.ndarray, " n"],
    attack: Attack,
    target: int,
    seed: int,
    draw: int = 0,
) -> tuple[UInt8[np.ndarray, "n h w c"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """A poisoned copy of a training set: images, labels, and what was done (0 nothing, 1 trigger, 2 noise mode).

    All-to-one: triggered images get the label `target`. `seed` fixes the trigger; with `draw`, which images get it.
    A clean-label attack is limited to the images of the target class.
    """
    x, y, done = x.copy(), y.copy(), np.zeros(len(x), dtype=np.int64)
    shape = (x.shape[1], x.shape[2], x.shape[3])
    rng = np.random.default_rng([seed, draw])
    count = round(attack.ratio * len(x))
    candidates = rng.permutation(np.flatnonzero(y == target) if attack.clean_label else len(x))
    chosen = candidates[:count]
    if attack.make_noise is not None:
        near = candidates[count : count + round(attack.noise_ratio * len(x))]
        x[near] = attack.make_noise(shape, seed, int(rng.integers(2**31)))(x[near])
        done[near] = 2
    x[chosen] = attack.make(shape, seed)(x[chosen])
    y[chosen] = target
    done[chosen] = 1
    return x, y, done
