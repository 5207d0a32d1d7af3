"""Work for later: a bounded queue and one thread, so that answers do not wait for verdicts."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
_END = object()
log = logging.getLogger("covary")


class BackgroundWorker(Generic[Item]):
    """Hands items to a function in another thread, in order; what does not fit into the queue is refused.

    Args:
        work: called with one item at a time; what it raises is logged.
        backlog: items that may wait.
    """

    def __init__(self, work: Callable[[Item], None], backlog: int) -> None:
        self._work, self._queue = work, queue.Queue(maxsize=backlog)
        self._open, self._lock = True, threading.Lock()
        self._thread = threading.Thread(target=self._run, name="covary-monitor", daemon=True)
        self._thread.start()

    def offer(self, item: Item) -> bool:
        """Whether the item was taken."""
        with self._lock:
            if not self._open:
                return False
            try:
                self._queue.put_nowait(item)
            except queue.Full:
                return False
            return True

    def drain(self) -> None:
        """Returns when everything taken so far is done."""
        self._queue.join()

    def close(self) -> None:
        """Takes nothing more, finishes what was taken, ends the thread."""
        with self._lock:
            if not self._open:
                return
            self._open = False
        self._queue.put(_END)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not _END:
            try:
                self._work(item)
            except Exception:
                log.exception("verdicts on a batch were lost")
            finally:
                self._queue.task_done()
        self._queue.task_done()
