"""How a detector is served: where, how much at once, and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from covary.errors import CovaryError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


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
        max_requests: waiting or in work at a time; more are answered with 429.
        read_seconds: a body that takes longer to arrive is answered with 408.
        api_key: what clients must send, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; None = nothing.
        audit: file that gets one JSON line an event, `-` = stdout, None = none.
        level: bound on the chance that the stream alarm is ever raised falsely, in (0, 1).
    """

    name: str = "detector"
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 64
    max_wait_ms: float = 2.0
    max_bytes: int = 16 * 2**20
    max_inputs: int = 1024
    max_requests: int = 256
    read_seconds: float = 20.0
    api_key: str | None = None
    audit: str | Path | None = None
    level: float = 0.01

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_bytes", "max_inputs", "max_requests"):
            if getattr(self, name) < 1:
                raise CovaryError(f"{name} is {getattr(self, name)}", "at least 1")
        if self.max_wait_ms < 0 or self.read_seconds <= 0:
            raise CovaryError("a waiting time below 0", "a time in milliseconds or seconds")
        if self.api_key is not None and len(self.api_key) < 8:
            raise CovaryError("an API key of fewer than 8 characters", "a long random one", "openssl rand -hex 24")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK
