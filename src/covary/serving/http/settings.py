"""How a detector is served: where, how much at once, and to whom."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from covary.errors import CovaryError

# What clients get to see.
VERDICTS = {
    "shown": "outputs of the network and verdicts",
    "hidden": "outputs of the network alone; verdicts go to the audit log, metrics and the live page",
}
# What happens to requests that the audit log cannot take down.
AUDIT_FAILURES = {
    "refuse": "they are answered with 503, and the service is not ready",
    "continue": "they are answered as ever; the log and `ready` say so",
}


@dataclass(frozen=True)
class ServeSettings:
    """Settings of a service.

    Attributes:
        name: of the model in URLs.
        host, port: where it listens; loopback unless told otherwise. Port 0 = any free one.
        max_batch: inputs in one pass, at least 1.
        max_wait_ms: how long the first input of a batch waits for company at most, milliseconds.
        max_bytes: of one request's body.
        max_inputs: in one request.
        max_requests: with a whole body, waiting or in work at a time; more are answered with 429.
        max_connections: open at a time; fewer where the limit on open files demands it.
        max_connections_per_address: the same for one IPv4 address or the first 64 bits of an IPv6 address.
        head_seconds: the head of a request that takes longer to arrive is answered with 408.
        read_seconds: a body that takes longer to arrive is answered with 408; an answer that takes longer to be taken
            is broken off.
        keep_seconds: an idle connection is closed after so long.
        api_key: what clients must send, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; None = nothing.
        operator_key: the same for metrics, the live page and acknowledging an alarm; None = the API key.
        verdicts: what clients get to see, a key of `VERDICTS`.
        audit: file that gets one JSON line an event, `-` = stdout, None = none.
        audit_failure: what happens where it cannot be written, a key of `AUDIT_FAILURES`.
        level: bound on the chance that the stream alarm is ever raised falsely, in (0, 1).
        max_new_tokens: of one answer of a language model, at least 1.
        window: latest inputs that are looked at together, beside the verdict on each alone; 0 = none.
    """

    name: str = "detector"
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 64
    max_wait_ms: float = 2.0
    max_bytes: int = 16 * 2**20
    max_inputs: int = 1024
    max_requests: int = 256
    max_connections: int = 512
    max_connections_per_address: int = 256
    head_seconds: float = 10.0
    read_seconds: float = 20.0
    keep_seconds: int = 30
    api_key: str | None = None
    operator_key: str | None = None
    verdicts: str = "shown"
    audit: str | Path | None = None
    audit_failure: str = "refuse"
    level: float = 0.01
    window: int = 1000
    max_new_tokens: int = 1024

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_bytes", "max_inputs", "max_requests", "max_connections",
                     "max_connections_per_address", "max_new_tokens"):  # fmt: skip
            if getattr(self, name) < 1:
                raise CovaryError(f"{name} is {getattr(self, name)}", "at least 1")
        if self.max_wait_ms < 0 or min(self.head_seconds, self.read_seconds, self.keep_seconds) <= 0:
            raise CovaryError("a waiting time below 0", "a time in milliseconds or seconds")
        for name, valid in (("verdicts", VERDICTS), ("audit_failure", AUDIT_FAILURES)):
            if getattr(self, name) not in valid:
                raise CovaryError(f"{name} is {getattr(self, name)!r}", f"one of: {', '.join(valid)}")
        for key in (self.api_key, self.operator_key):
            if key is not None and len(key) < 8:
                raise CovaryError("an API key of fewer than 8 characters", "a long random one", "openssl rand -hex 24")
            if key is not None and (not key.isprintable() or key != key.strip()):
                raise CovaryError("an API key that no header can carry", "one line of letters and digits")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"
