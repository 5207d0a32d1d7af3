"""What Prometheus is told: latency, flags, p-values, the stream alarm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from covary.errors import missing_extra
from covary.scoring.judge import Verdicts
from covary.scoring.martingale import ConformalMartingale

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
P_VALUES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters and histograms of one service, in a registry of their own."""

    def __init__(self) -> None:
        try:
            import prometheus_client as prometheus
        except ModuleNotFoundError as error:
            raise missing_extra("prometheus-client", "serve") from error
        self.content_type = prometheus.CONTENT_TYPE_LATEST
        self._write = prometheus.generate_latest
        self.registry = registry = prometheus.CollectorRegistry()

        def made(kind: Any, name: str, text: str, **more: Any) -> Any:
            return kind(f"covary_{name}", text, registry=registry, **more)

        counter, gauge, histogram = prometheus.Counter, prometheus.Gauge, prometheus.Histogram
        self._requests = made(counter, "requests", "Inference requests by status of the answer.", labelnames=["status"])
        self._seconds = made(histogram, "request_seconds", "From a request's head to its answer.", buckets=SECONDS)
        self._pass = made(histogram, "pass_seconds", "One pass: outputs and verdicts of a batch.", buckets=SECONDS)
        self._batch = made(histogram, "batch_inputs", "Inputs that shared a pass.", buckets=SIZES)
        self._inputs = made(counter, "inputs", "Inputs by verdict.", labelnames=["verdict"])
        self._by_window = made(counter, "inputs_flagged_by_window", "Inputs that the window flags, beside verdicts.")
        self._p = made(histogram, "p_value", "p-values; uniform on inputs like the trusted ones.", buckets=P_VALUES)
        self._waiting = made(gauge, "requests_open", "Requests accepted and not answered yet.")
        self._capital = made(gauge, "stream_log10_capital", "Stream alarm: decimal logarithm of the capital.")
        self._alarm = made(gauge, "stream_alarm", "Stream alarm: 1 from when it is raised until it is acknowledged.")
        self._audit = made(gauge, "audit_failing", "1 while the audit log cannot be written.")
        self._lost = made(gauge, "audit_events_lost", "Events that the audit log could not take down.")
        self._connections = made(gauge, "connections", "Connections now.")
        self._answers = made(counter, "answers", "A language model's answers by why they ended.", labelnames=["finish"])
        self._tokens = made(counter, "answer_tokens", "Tokens of a language model's answers.")
        for verdict in ("flagged", "passed"):
            self._inputs.labels(verdict)

    def answered(self, status: int, seconds: float) -> None:
        """One request has been answered."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def judged(self, verdicts: Verdicts, seconds: float, stream: ConformalMartingale, by_window: int = 0) -> None:
        """One batch has been judged, so many of it flagged by the window."""
        self._by_window.inc(by_window)
        flagged = int(verdicts.flagged.sum())
        self._inputs.labels("flagged").inc(flagged)
        self._inputs.labels("passed").inc(len(verdicts) - flagged)
        for p in np.asarray(verdicts.p_value).tolist():
            self._p.observe(p)
        self._pass.observe(seconds)
        self._batch.observe(len(verdicts))
        self._capital.set(stream.log_capital / math.log(10))
        self._alarm.set(int(stream.alarmed))

    def spoken(self, finish: str, tokens: int, flagged: bool, p_value: float) -> None:
        """One answer of a language model is over."""
        self._answers.labels(finish).inc()
        self._tokens.inc(tokens)
        self._inputs.labels("flagged" if flagged else "passed").inc()
        self._p.observe(p_value)

    def restarted(self) -> None:
        """The stream alarm has started anew."""
        self._capital.set(0)
        self._alarm.set(0)

    def audit(self, failing: bool, lost: int) -> None:
        """How the audit log is doing."""
        self._audit.set(int(failing))
        self._lost.set(lost)

    def connected(self, number: int) -> None:
        """How many connections there are."""
        self._connections.set(number)

    def open(self, number: int) -> None:
        """How many requests are open."""
        self._waiting.set(number)

    def text(self) -> bytes:
        """The exposition, for `GET /metrics`."""
        return self._write(self.registry)
