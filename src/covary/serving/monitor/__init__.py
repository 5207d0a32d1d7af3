"""Beside the model: the network's own outputs, and a verdict on every input, from one pass.

>>> monitor = Monitor(detector)                        # doctest: +SKIP
>>> outputs, verdicts = monitor(batch)                 # doctest: +SKIP
>>> monitor.stream.account().text                      # doctest: +SKIP
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from covary.detector import Detector
from covary.errors import CovaryError
from covary.scoring.judge import Verdicts
from covary.scoring.martingale import ConformalMartingale
from covary.scoring.pile.window import SIZE, Seen, window_of
from covary.scoring.rows import Batch, Rows
from covary.serving.monitor.deferred import BackgroundWorker
from covary.serving.monitor.one_pass import OnePass

__all__ = ["Counts", "Monitor", "MonitorResult"]

log = logging.getLogger("covary")
Deliver = Callable[[Verdicts], Any]


@dataclass(frozen=True)
class MonitorResult:
    """One batch, answered and judged.

    Attributes:
        outputs: what the network returned.
        verdicts: on every input; None where the batch was not examined.
        rows: of the inputs at `judged`, for evidence; None where there are none.
        judged: positions of the inputs on which network and gradient are finite. The others are flagged with an
            infinite score and the smallest p-value there is.
        window: what the latest inputs show together on those at `judged`; None without a window.
    """

    outputs: Any
    verdicts: Verdicts | None = None
    rows: Rows | None = None
    judged: Int[np.ndarray, " _"] | None = None
    window: Seen | None = None


@dataclass
class Counts:
    """Inputs since the start.

    Attributes:
        seen: handed to the monitor.
        judged: with a verdict.
        flagged: of these.
        flagged_by_window: of those that the window judged; beside the verdicts, and no part of them.
        unsampled: not examined because of the sampling rate.
        dropped: not examined because too many batches were waiting.
        failed: not examined because examining them failed; the log says why.
    """

    seen: int = 0
    judged: int = 0
    flagged: int = 0
    flagged_by_window: int = 0
    unsampled: int = 0
    dropped: int = 0
    failed: int = 0


class Monitor:
    """Wraps a detector's network: the same outputs, bit for bit, and verdicts on the inputs.

    Called with a batch as the network takes it, prepared already (the first dimension counts inputs). It answers
    whatever happens to the verdicts; an error of the network itself is raised as the bare network would. Safe to call
    from several threads, one pass at a time.

    Args:
        detector: a fitted detector.
        deferred: outputs at once, from the bare network; verdicts follow from another thread.
        deliver: in deferred mode, a `queue.Queue` or a function that gets the `Verdicts` of each batch, in order.
        rate: share of the batches to examine, in (0, 1]; chosen by lot.
        backlog: in deferred mode, batches that may wait; more are answered but not examined, and counted as dropped.
        level: bound on the chance that the stream alarm is ever raised falsely, in (0, 1).
        seed: of the lots.
        window: latest inputs that are looked at together, beside the verdict on each alone (see `Window`); 0 = none,
            as with a score that looks at no piles. `Verdicts.window_p` tells what it shows; the stream alarm goes by
            single scores as ever.

    Attributes:
        stream: the stream alarm on the scores of all examined inputs, a `ConformalMartingale`. Of a detector with
            cross-conformal calibration the first split alone scores the stream, among the inputs held out from it.
        counts: see `Counts`.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        deferred: bool = False,
        deliver: queue.Queue[Verdicts] | Deliver | None = None,
        rate: float = 1.0,
        backlog: int = 16,
        level: float = 0.01,
        seed: int = 0,
        window: int = SIZE,
    ) -> None:
        if not 0 < rate <= 1:
            raise CovaryError(f"a sampling rate of {rate}", "a number above 0, at most 1")
        if deferred and deliver is None:
            raise CovaryError("a deferred monitor without a place for its verdicts", "deliver=queue or a function")
        if not hasattr(detector, "judge"):
            raise CovaryError("the detector has not seen trusted data", "a fitted detector", "call fit(trusted) first")
        if detector.settings.kind == "text":
            found = "a monitor beside a language model, whose answers are many passes and not one"
            raise CovaryError(found, "a network of images or arrays", "score answers with their prompts: score(texts)")
        self.detector, self.judge, self.rate = detector, detector.judge, rate
        self._level, self._starts = level, seed
        self.stream = self._new_stream()
        self.window = window_of(self.judge, window)
        self.counts = Counts()
        self._pass = OnePass(detector)
        self._lots = np.random.default_rng(seed)
        self._working, self._counting = threading.Lock(), threading.Lock()
        self._deliver = deliver.put if isinstance(deliver, queue.Queue) else deliver
        self._later: BackgroundWorker[Batch] | None = BackgroundWorker(self._judge_later, backlog) if deferred else None

    def __call__(self, batch: Any, ids: Sequence[str] | None = None) -> tuple[Any, Verdicts | None]:
        """(outputs, verdicts) of one batch; verdicts are None in deferred mode and where the lot spared the batch.

        `ids` name the inputs; without them they are counted from the start.
        """
        watched = self.watch(batch, ids)
        return watched.outputs, watched.verdicts

    def watch(self, batch: Any, ids: Sequence[str] | None = None) -> MonitorResult:
        """The same with the rows behind the verdicts, for evidence."""
        n = len(tree_leaves(batch)[0])
        with self._counting:
            first = self.counts.seen
            self.counts.seen += n
            spared = n == 0 or (self.rate < 1 and self._lots.random() >= self.rate)
            self.counts.unsampled += n if spared else 0
        names = [str(first + i) for i in range(n)] if ids is None else list(ids)
        if spared or self._later is not None:
            with nullcontext() if self._pass.apart else self._working:
                outputs = self._pass.bare(batch)
            if not spared and self._later is not None:
                # A copy, since callers reuse their buffers.
                kept = Batch(names, tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch))
                if not self._later.offer(kept):
                    self._count(dropped=n)
            return MonitorResult(outputs)
        return self._examine(Batch(names, batch))

    @property
    def notes(self) -> list[str]:
        """In words, where outputs need a pass of their own, and what the engine left to exact gradients."""
        return self._pass.notes + list(getattr(self._pass.extractor, "notes", []))

    def restart_stream(self) -> None:
        """The stream alarm starts anew, on other lots; each start may alarm falsely with probability `level`."""
        with self._working:
            self._starts += 1
            self.stream = self._new_stream()

    def _new_stream(self) -> ConformalMartingale:
        return ConformalMartingale(self.judge.stream_calibration, self._level, self._starts)

    def drain(self) -> None:
        """Returns when every deferred batch so far is judged and delivered."""
        if self._later is not None:
            self._later.drain()

    def close(self) -> None:
        """Ends deferred work after finishing it; the monitor then answers without verdicts."""
        if self._later is not None:
            self._later.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, **more: int) -> None:
        with self._counting:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)

    def _judge_later(self, batch: Batch) -> None:
        watched = self._examine(batch, answer=False)
        if watched.verdicts is not None and self._deliver is not None:
            self._deliver(watched.verdicts)

    def _examine(self, batch: Batch, answer: bool = True) -> MonitorResult:
        with self._working:
            try:
                outputs, rows = self._pass(batch) if answer else (None, self._pass.extractor.rows(batch))
                watched = self._judged(outputs, rows)
            except CovaryError:
                # Some input has no finite gradient; the others are judged all the same.
                outputs = self._pass.bare(batch.x) if answer else None
                watched = replace(self._one_by_one(batch), outputs=outputs)
            except Exception:
                outputs = self._pass.bare(batch.x) if answer else None  # raises what the network itself raises
                log.exception("%d inputs were not examined", len(batch))
                self._count(failed=len(batch))
                return MonitorResult(outputs)
            if watched.verdicts is not None:
                self.stream.update(watched.verdicts.stream_score)
                flagged = int(watched.verdicts.flagged.sum())
                self._count(judged=len(watched.verdicts), flagged=flagged)
            return watched

    def _judged(self, outputs: Any, rows: Rows) -> MonitorResult:
        measured = [score.measure(rows) for score in self.judge.scores_]
        found = self.judge.copies_.find(rows)
        verdicts = self.judge.verdicts(rows.ids, rows.predicted, measured, found)
        watched = MonitorResult(outputs, verdicts, rows, np.arange(len(rows)))
        if self.window is None:
            return watched
        try:
            seen = self.window(rows, measured[0], found)
        except Exception:
            # Verdicts on single inputs go on without it.
            log.exception("the window is given up")
            self.window = None
            return watched
        self._count(flagged_by_window=int(seen.flagged.sum()))
        return replace(watched, verdicts=replace(verdicts, window_p=seen.p_value), window=seen)

    def _one_by_one(self, batch: Batch) -> MonitorResult:
        found: dict[int, Rows] = {}
        for i, name in enumerate(batch.ids):
            try:
                one = tree_map(lambda leaf, i=i: leaf[i : i + 1], batch.x)
                found[i] = self._pass.extractor.rows(Batch([name], one))
            except CovaryError as problem:
                log.warning("input %r is flagged without a score: %s", name, problem)
        n = len(batch)
        kinds = {} if not found else self.judge.judge(next(iter(found.values()))).parts
        score, stream, p = np.full(n, np.inf), np.full(n, np.inf), np.full(n, self.judge.p_min)
        flagged, predicted = np.ones(n, bool), np.full(n, -1, np.int64)
        parts = {kind: np.full(n, np.inf) for kind in kinds}
        rows = Rows.concatenate(list(found.values())) if found else None
        if rows is not None:
            own, at = self.judge.judge(rows), np.array(list(found))
            stream[at] = own.stream_score
            score[at], p[at], flagged[at], predicted[at] = own.score, own.p_value, own.flagged, own.predicted
            for kind in parts:
                parts[kind][at] = own.parts[kind]
        return MonitorResult(
            None, Verdicts(list(batch.ids), score, p, flagged, predicted, parts), rows, np.array(list(found), np.int64)
        )
