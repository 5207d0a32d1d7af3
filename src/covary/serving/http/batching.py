"""Dynamic batching: requests that arrive together share a pass, and none waits longer for company than it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Job:
    """One request's inputs on their way through the network.

    Attributes:
        id: the request's.
        x: the inputs as the network takes them, (n, ...).
        raw: the inputs as sent.
        evidence: whether the client wants it.
        done: gets the result, or what went wrong.
    """

    id: str
    x: Tensor
    raw: Any
    evidence: bool
    done: asyncio.Future[Any]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Jobs of one kind can share a pass."""
        return tuple(self.x.shape[1:]), self.x.dtype


class Batcher:
    """Collects jobs and hands them to `work` in one thread.

    A batch closes when it holds `most` inputs, when its first job has waited `wait` seconds, or when a job of another
    kind comes. While a batch is in work the next one fills, so under load nothing waits for company at all.

    Args:
        work: gets the jobs of one batch and resolves their futures, through the loop.
        most: inputs in a batch; a larger request is a batch of its own.
        wait: seconds.
    """

    def __init__(self, work: Callable[[Sequence[Job]], None], most: int, wait: float) -> None:
        self._work, self._most, self._wait = work, most, wait
        self._queue: asyncio.Queue[Job | None] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "covary-pass")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins; in a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def submit(self, job: Job) -> Any:
        """The job's result."""
        self._queue.put_nowait(job)
        return await job.done

    async def between(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, which runs while no batch does."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @property
    def waiting(self) -> int:
        """Jobs that no batch has taken yet."""
        return self._queue.qsize()

    async def close(self) -> None:
        """Finishes all jobs that were submitted, then ends."""
        if self._task is not None:
            self._queue.put_nowait(None)
            await self._task
        self._thread.shutdown()

    async def _run(self) -> None:
        loop, held = asyncio.get_running_loop(), None
        while True:
            first = held or await self._queue.get()
            held = None
            if first is None:
                return
            jobs, count, ended = [first], len(first.x), False
            closing = loop.time() + self._wait
            while count < self._most:
                try:
                    # What is there already is taken at once; a timer is set only to wait for more.
                    more = self._queue.get_nowait()
                except asyncio.QueueEmpty:
                    left = closing - loop.time()
                    if left <= 0:
                        break
                    try:
                        more = await asyncio.wait_for(self._queue.get(), left)
                    except TimeoutError:
                        break
                if more is None:
                    ended = True
                    break
                if more.kind != first.kind or count + len(more.x) > self._most:
                    held = more
                    break
                jobs.append(more)
                count += len(more.x)
            try:
                await loop.run_in_executor(self._thread, self._work, jobs)
            except Exception as problem:
                for job in jobs:
                    if not job.done.done():
                        job.done.set_exception(problem)
            if ended:
                return
