"""Reading ahead: the next batches are fetched and decoded while the network works on the present one."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")
_END = object()


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items in order, the last one shorter."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def prefetch(items: Iterable[T], most: int = 2) -> Iterator[T]:
    """The same items in the same order, made on another thread, at most `most` of them waiting; errors come through."""
    queue: Queue = Queue(maxsize=most)
    stopped = threading.Event()

    def offer(item: object) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer((item, None)):
                    return
            offer((_END, None))
        except BaseException as problem:
            offer((_END, problem))

    thread = threading.Thread(target=work, name="covary-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, problem = queue.get()
            if problem is not None:
                raise problem
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        with_room(queue)
        thread.join()


def with_room(queue: Queue) -> None:
    """Empties a queue, so that a thread waiting to put something into it goes on."""
    try:
        while True:
            queue.get_nowait()
    except Empty:
        pass
