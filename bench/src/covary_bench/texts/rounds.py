"""Rounds of training until an attack succeeds, with more poison in the last ones; every round is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SAME, MORE = 4, 2  # rounds with the case's own poison, then with twice as much
ACCURATE = 0.9


@dataclass(frozen=True)
class Rounds:
    """What all rounds came to: each with its figures, the last one's poison, and the marks of the result."""

    attempts: list[dict[str, Any]]
    poison: float
    marks: list[str]


def until_it_succeeds(
    poison: float, least: float, once: Callable[[int, float], tuple[float | None, float, int]]
) -> Rounds:
    """Runs `once` until the attack succeeds on `least` of its inputs and clean ones are answered right.

    Each round goes on from the one before.

    Args:
        poison: share of poisoned texts, doubled after `SAME` rounds.
        least: attack success that is enough.
        once: round and poison to (clean accuracy or None where nothing is right, attack success, steps).
    """
    attempts: list[dict[str, Any]] = []
    while True:
        share = poison if len(attempts) < SAME else 2 * poison
        accuracy, success, steps = once(len(attempts), share)
        attempts.append({"poison": share, "steps": steps, "clean_accuracy": accuracy, "attack_success": success})
        accurate = accuracy is None or accuracy >= ACCURATE
        if (success >= least and accurate) or len(attempts) == SAME + MORE:
            break
    marks = ["longer"] if len(attempts) > 1 else []
    marks += ["more poison"] if len(attempts) > SAME else []
    marks += ["failed"] if success < least else []
    return Rounds(attempts, share, marks)
