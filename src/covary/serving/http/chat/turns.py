"""Answers that are written at the same time take turns, a token each, in one thread beside the event loop."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

from covary.errors import CovaryError
from covary.serving.guard import Piece

log = logging.getLogger("covary")
# More wait until one of these is over: each holds its own keys and values.
AT_ONCE = 8


class Speaking:
    """One answer on its way to a client.

    Args:
        begin: gives the pieces; called in the working thread.
    """

    def __init__(self, begin: Callable[[], Iterator[Piece]]) -> None:
        self.begin = begin
        self.pieces: Iterator[Piece] | None = None
        self.gone = False
        self._loop, self._coming = asyncio.get_running_loop(), asyncio.Queue()

    def leave(self) -> None:
        """Nobody listens any more: no further token is made."""
        self.gone = True

    def tell(self, what: Piece | Exception) -> None:
        """From the working thread: a piece, or what went wrong."""
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            self._loop.call_soon_threadsafe(self._coming.put_nowait, what)

    async def next(self) -> Piece:
        """The next piece."""
        what = await self._coming.get()
        if isinstance(what, Exception):
            raise what
        return what


class Turns:
    """A thread that goes round the answers and makes a token of each."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once, self._queue = at_once, queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="covary-answers", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def submit(self, speaking: Speaking) -> None:
        """One more answer."""
        self._queue.put(speaking)

    async def close(self) -> None:
        """Finishes all answers that were submitted, then ends."""
        self._queue.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _run(self) -> None:
        going: deque[Speaking] = deque()
        closing = False
        while going or not closing:
            while not closing and len(going) < self._at_once and not (going and self._queue.empty()):
                one = self._queue.get()
                closing = one is None
                if one is not None:
                    going.append(one)
            if going:
                one = going.popleft()
                if self._one_more(one):
                    going.append(one)

    def _one_more(self, speaking: Speaking) -> bool:
        """Makes the next piece of an answer; whether there are more."""
        try:
            if speaking.gone:
                return False
            if speaking.pieces is None:
                speaking.pieces = speaking.begin()
            piece = next(speaking.pieces)
        except Exception as problem:
            if not isinstance(problem, CovaryError):
                log.exception("an answer failed")
            speaking.tell(RuntimeError("no more pieces") if isinstance(problem, StopIteration) else problem)
            return False
        speaking.tell(piece)
        return piece.finish is None
