"""An answer judged as it is written: the prompt before its first token, then the answer so far, every few tokens.

>>> guard = Guard(detector, every=8, policy="stop")            # doctest: +SKIP
>>> for token, verdict in guard.watch(prompt, tokens): ...     # doctest: +SKIP
"""

from __future__ import annotations

from covary.serving.guard.answers import Piece, guarded
from covary.serving.guard.guard import LEAST_AT_A_LOOK, POLICIES, Guard
from covary.serving.guard.looks import Looks
from covary.serving.guard.watch import FORWARDS, RunningVerdict, Watch, so_far

__all__ = [
    "FORWARDS",
    "LEAST_AT_A_LOOK",
    "POLICIES",
    "Guard",
    "Looks",
    "Piece",
    "RunningVerdict",
    "Watch",
    "guarded",
    "so_far",
]
