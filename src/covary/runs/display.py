"""What long work tells while it runs. The work calls a `Display`; the command line brings one that draws."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

Progress = Callable[[int, int], None]


class Display:
    """Says nothing; `covary.cli.console.Terminal` overrides all three."""

    def progress(self, what: str) -> AbstractContextManager[Progress | None]:
        """A callback (done, total) for work that knows how far it is; None where nobody watches."""
        return nullcontext()

    def waiting(self, what: str) -> AbstractContextManager[None]:
        """For work that cannot say how far it is."""
        return nullcontext()

    def findings(self, findings: list[dict[str, Any]]) -> None:
        """What a check found before the work."""


SILENT = Display()
