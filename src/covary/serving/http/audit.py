"""The audit log: one JSON line an event, so that every verdict can be told from the inputs' hashes later."""

from __future__ import annotations

import json
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from covary.errors import CovaryError


class AuditLog:
    """Appends events to a file, a whole line at a time, from any thread; `-` = stdout, None = nowhere."""

    def __init__(self, place: str | Path | None) -> None:
        self._lock, self._own = threading.Lock(), place not in (None, "-")
        self._file: IO[str] | None = sys.stdout if place == "-" else None
        if place is not None and self._own:
            try:
                self._file = Path(place).open("a", encoding="utf-8")  # noqa: SIM115
            except OSError as problem:
                raise CovaryError(f"the audit log {place} cannot be written ({problem.strerror or problem})") from None

    def __call__(self, event: str, **facts: Any) -> None:
        """Writes one event."""
        if self._file is None:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        # ASCII JSON: no id of a client can break a line or a terminal.
        line = json.dumps({"time": now, "event": event, **facts}, separators=(",", ":")) + "\n"
        with self._lock:
            if not self._file.closed:
                self._file.write(line)
                self._file.flush()

    def close(self) -> None:
        """Ends it."""
        with self._lock:
            if self._file is not None and self._own:
                self._file.close()
