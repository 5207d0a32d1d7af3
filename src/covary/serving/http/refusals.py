"""Requests that are turned away: one sentence, and the HTTP status that goes with it."""

from __future__ import annotations

from covary.errors import CovaryError


class Refused(CovaryError):
    """A request that is not served, in one sentence.

    Attributes:
        status: of the answer, 400 to 599.
    """

    def __init__(self, status: int, found: str, expected: str = "", remedy: str = "") -> None:
        super().__init__(found, expected, remedy)
        self.status = status
