"""The audit log: one JSON line an event, so that every verdict can be known from the inputs' hashes later."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from covary.errors import CovaryError

log = logging.getLogger("covary")


class AuditLog:
    """Appends events to a file, a whole line or nothing, from any thread; `-` = stdout, None = nowhere.

    A line that cannot be written is left out and counted; the first one that can be written again says how many are
    missing.

    Attributes:
        problem: why the last line could not be written; None if it was.
        lost: lines that were left out since the start.
    """

    def __init__(self, place: str | Path | None) -> None:
        self._lock, self._own = threading.Lock(), place not in (None, "-")
        self._file: int | None = None
        self._torn = False
        self.problem: str | None = None
        self.lost = self._reported = 0
        if place is not None and self._own:
            try:
                self._file = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            except OSError as problem:
                found = f"the audit log {place} cannot be written ({problem.strerror or problem})"
                raise CovaryError(found, "a file one may append to", "check its folder, rights and space") from None
        elif place == "-":
            self._file = sys.stdout.fileno()

    def __call__(self, event: str, **facts: Any) -> bool:
        """Writes one event; whether that went well."""
        with self._lock:
            if self._file is None:
                return True
            if self._recover() and self._attempt(event, facts):
                return True
            self.lost += 1
            return False

    def works(self) -> bool:
        """Whether the next event can be written; tries, if the last one could not."""
        with self._lock:
            return self._file is None or self._recover()

    def close(self) -> None:
        """Ends it."""
        with self._lock:
            if self._file is not None and self._own:
                os.close(self._file)
            self._file = None

    def _recover(self) -> bool:
        """After events were left out, says so first."""
        missing = self.lost - self._reported
        if not missing:
            return True
        if not self._attempt("events lost", {"events": missing, "reason": self.problem}):
            return False
        self._reported = self.lost
        return True

    def _attempt(self, event: str, facts: dict[str, Any]) -> bool:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        # ASCII JSON: no id of a client can break a line or a terminal.
        line = json.dumps({"time": now, "event": event, **facts}, separators=(",", ":")).encode() + b"\n"
        try:
            self._append(line)
        except OSError as problem:
            self.problem = problem.strerror or str(problem)
            log.error("the audit log cannot be written: %s", self.problem)
            return False
        self.problem = None
        return True

    def _append(self, line: bytes) -> None:
        assert self._file is not None
        rest = b"\n" + line if self._torn else line
        done = 0
        try:
            while done < len(rest):
                done += os.write(self._file, rest[done:])
        except OSError:
            if done:
                self._take_back(done)
            raise
        self._torn = False

    def _take_back(self, done: int) -> None:
        # Half a line would be no JSON. What cannot be cut off, such as a pipe, gets a line end before the next event.
        assert self._file is not None
        try:
            os.ftruncate(self._file, os.lseek(self._file, 0, os.SEEK_END) - done)
        except OSError:
            self._torn = True
