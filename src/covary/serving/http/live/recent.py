"""What the live page shows: rates by time, the spread of p-values, the stream alarm's path, what was flagged last."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from typing import Any

import numpy as np

from covary.scoring.judge import Verdicts
from covary.scoring.martingale import ConformalMartingale

BIN_SECONDS, BINS = 10, 90
P_BINS, P_KEPT = 20, 4000
PATH, CARDS, LATENCIES = 240, 24, 2000


class Recent:
    """The last while of a service, in bounded memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.started = time.time()
        self._bins: deque[list[float]] = deque(maxlen=BINS)
        self._p: deque[float] = deque(maxlen=P_KEPT)
        self._path: list[tuple[int, float]] = [(0, 0.0)]
        self._every = 1
        self._cards: deque[dict[str, Any]] = deque(maxlen=CARDS)
        self._latencies: deque[float] = deque(maxlen=LATENCIES)

    def answered(self, seconds: float) -> None:
        """One request has been answered."""
        with self._lock:
            self._latencies.append(seconds)

    def judged(self, verdicts: Verdicts, stream: ConformalMartingale) -> None:
        """One batch has been judged."""
        now = math.floor(time.time() / BIN_SECONDS)
        with self._lock:
            if not self._bins or self._bins[-1][0] != now:
                self._bins.append([now, 0, 0])
            self._bins[-1][1] += len(verdicts)
            self._bins[-1][2] += int(verdicts.flagged.sum())
            self._p.extend(np.asarray(verdicts.p_value).tolist())
            if stream.n - self._path[-1][0] >= self._every:
                self._path.append((stream.n, stream.log_capital / math.log(10)))
            if len(self._path) > PATH:
                # Every other point goes, and points come half as often.
                self._path, self._every = self._path[::2], max(2 * self._every, stream.n // PATH)

    def restarted(self) -> None:
        """The stream alarm has started anew."""
        with self._lock:
            self._path, self._every = [(0, 0.0)], 1

    def flagged(self, card: dict[str, Any]) -> None:
        """Evidence on a flagged input."""
        with self._lock:
            self._cards.appendleft({"time": time.time(), **card})

    def to_json(self, stream: ConformalMartingale) -> dict[str, Any]:
        """Everything, as plain values."""
        now = math.floor(time.time() / BIN_SECONDS)
        with self._lock:
            bins = {int(at): (int(n), int(flagged)) for at, n, flagged in self._bins}
            first = max(min(bins, default=now), now - BINS + 1)
            rates = [[at * BIN_SECONDS, *bins.get(at, (0, 0))] for at in range(first, now + 1)]
            counts = np.histogram(list(self._p), P_BINS, (0, 1))[0]
            path = [*self._path, (stream.n, stream.log_capital / math.log(10))]
            seconds = np.array(self._latencies)
            cards = list(self._cards)
        quantiles = np.quantile(seconds, [0.5, 0.99]).tolist() if len(seconds) else [None, None]
        return {
            "now": time.time(),
            "started": self.started,
            "bin_seconds": BIN_SECONDS,
            "rates": rates,
            "p_histogram": counts.tolist(),
            "latency": {"p50": quantiles[0], "p99": quantiles[1]},
            "stream": {
                "n": stream.n,
                "path": [[n, round(value, 3)] for n, value in path],
                "log10_capital": round(stream.log_capital / math.log(10), 3),
                "log10_alarm": -math.log10(stream.level),
                "level": stream.level,
                "account": stream.account().to_json(),
            },
            "cards": cards,
        }
