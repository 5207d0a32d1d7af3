"""Bodies of requests on their way in: slow ones hold neither memory nor a place against those that come."""

from __future__ import annotations

import asyncio
from typing import Any

from covary.serving.http.refusals import Refused
from covary.serving.http.settings import ServeSettings

# Of a body that is too large, this many times the limit are read and thrown away, so that clients read the answer.
PATIENCE = 4
# Half-arrived bodies may hold the memory of so many whole ones.
AT_ONCE = 16


class Bodies:
    """Reads bodies; where half-arrived ones hold too much memory, the one that began first is given up.

    Args:
        settings: `max_bytes` of one body, `read_seconds` for it.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._most, self._seconds = settings.max_bytes, settings.read_seconds
        self._arriving: dict[asyncio.Task[Any], int] = {}
        self._held = 0

    async def read(self, request: Any) -> bytes:
        """The body of a Starlette request.

        Raises:
            Refused: 413, it is too large; 408, it took too long, or others needed the memory that it held.
        """
        announced = request.headers.get("content-length", "0")
        size = int(announced) if len(announced) <= 18 and announced.isascii() and announced.isdigit() else 0
        task = asyncio.ensure_future(self._collect(request))
        self._arriving[task] = 0
        try:
            await asyncio.wait({task}, timeout=self._seconds)
            if task.cancelled():
                raise Refused(408, "a slow body gave way to others", "", "try again soon")
            if not task.done():
                found = f"a body that took over {self._seconds:g} s to arrive"
                raise Refused(408, found, "a body in time", "send it faster")
            body, got = task.result()
        finally:
            task.cancel()
            self._held -= self._arriving.pop(task)
        if max(size, got) > self._most:
            raise Refused(413, f"a body of {max(size, got)} bytes", f"at most {self._most}")
        return body

    async def _collect(self, request: Any) -> tuple[bytes, int]:
        parts, got = [], 0
        async for part in request.stream():
            got += len(part)
            if got <= self._most:
                parts.append(part)
                self._hold(len(part))
            elif got > PATIENCE * self._most:
                break
        return b"".join(parts), got

    def _hold(self, size: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._arriving[task] += size
        self._held += size
        for other in self._arriving:
            if self._held <= AT_ONCE * self._most:
                return
            if other is not task and not other.done():
                other.cancel()
                self._held -= self._arriving[other]
                self._arriving[other] = 0
