"""Who is connected: a listening socket with room for so many, and a log that nobody outside can fill."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from covary.errors import CovaryError
from covary.serving.http.settings import ServeSettings

log = logging.getLogger("covary")
# Connections in the kernel's queue, and how many of them are taken in one turn of the event loop.
QUEUED, TAKEN_AT_ONCE = 2048, 64
# Descriptors left for files, the event loop and connections of one turn that are on their way out.
RESERVED = TAKEN_AT_ONCE + 32
LEAST = 8
# Nobody is sent away for the sake of a newcomer before this many seconds.
GRACE = 0.1
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@runtime_checkable
class Peer(Protocol):
    """A connection as the room sees it."""

    source: bytes

    def make_way(self) -> None:
        """Closes it: a newcomer needs its place."""


class Room:
    """Places for connections: so many in all, so many from one address.

    When they are taken, the connection that has been waiting longest for its client makes way: first those that owe the
    rest of a request, then idle ones. A connection whose request is at work is never closed.

    Args:
        most: connections in all.
        most_per_source: connections from one address; of IPv6 addresses the first 64 bits count.

    Attributes:
        count: connections now.
        taken: the same by address.
    """

    def __init__(self, most: int, most_per_source: int) -> None:
        self.most, self.most_per_source = most, most_per_source
        self.count = 0
        self.taken: Counter[bytes] = Counter()
        self._leaving: Counter[bytes] = Counter()
        # In the order in which they began to wait.
        self._owing: dict[Peer, float] = {}
        self._idle: dict[Peer, float] = {}

    def enter(self, source: bytes) -> bool:
        """Takes a place, which somebody who waits may have to give up; False if there is none."""
        if self.taken[source] >= self.most_per_source and not self._make_way(source):
            return False
        if self.count >= self.most and not self._make_way(None):
            return False
        self.count += 1
        self.taken[source] += 1
        return True

    def leave(self, source: bytes) -> None:
        """Gives a place back."""
        if self._leaving[source] > 0:
            self._leaving[source] -= 1
            if not self._leaving[source]:
                del self._leaving[source]
        else:
            self._free(source)

    def _free(self, source: bytes) -> None:
        self.count -= 1
        self.taken[source] -= 1
        if self.taken[source] <= 0:
            del self.taken[source]

    def owes(self, peer: Peer) -> None:
        """The client has to send the rest of a request."""
        self._idle.pop(peer, None)
        self._owing.setdefault(peer, time.monotonic())

    def idles(self, peer: Peer) -> None:
        """The client may send another request."""
        self._owing.pop(peer, None)
        self._idle.setdefault(peer, time.monotonic())

    def works(self, peer: Peer) -> None:
        """It is our turn, or it is closed."""
        self._owing.pop(peer, None)
        self._idle.pop(peer, None)

    def _make_way(self, source: bytes | None) -> bool:
        now = time.monotonic()
        for waiting in (self._owing, self._idle):
            for peer, since in waiting.items():
                if now - since < GRACE:
                    break
                if source is None or peer.source == source:
                    self.works(peer)
                    # Its place is free at once; its descriptor is in the next turn of the event loop.
                    self._free(peer.source)
                    self._leaving[peer.source] += 1
                    peer.make_way()
                    return True
        return False


class Connected(socket.socket):
    """A connection that gives its place back when it is closed."""

    room: Room | None = None
    source = b""

    def close(self) -> None:
        """Closes it."""
        super().close()
        if self.room is not None:
            self.room.leave(self.source)
            self.room = None


class Listener(socket.socket):
    """A listening TCP socket that takes no more connections than there is room for.

    Whoever finds none gets a 503 and is closed at once, so that the queue never blocks those behind.

    Args:
        settings: where to listen.
        room: see `Room`.

    Raises:
        CovaryError: the address cannot be listened on.
    """

    def __init__(self, settings: ServeSettings, room: Room) -> None:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        # asyncio sets TCP_NODELAY only where the protocol is named. Without it the second packet of an answer waits for
        # the client's delayed acknowledgement, 40 ms.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._room = room
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.bind((settings.host, settings.port))
        except OSError as problem:
            self.close()
            where = f"{settings.host}:{settings.port}"
            raise CovaryError(
                f"{where} cannot be listened on ({problem.strerror or problem})", "", "choose another port="
            ) from None
        self._spare = os.open(os.devnull, os.O_RDONLY)
        self.listen()

    def listen(self, backlog: int = QUEUED, /) -> None:
        """Listens; asyncio's backlog, the number it takes in one turn, is not the kernel's."""
        super().listen(max(backlog, QUEUED))

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            ConnectionAbortedError: there was no room for it.
            BlockingIOError: there is none.
        """
        try:
            plain, address = super().accept()
        except OSError as problem:
            if problem.errno not in EXHAUSTED:
                raise
            log.warning("a connection is turned away: %s", problem.strerror)
            self._turn_away_without_descriptor()
            raise ConnectionAbortedError from None
        source = source_of(address[0])
        if not self._room.enter(source):
            log.warning("connections are turned away: %d are open, %d from %s", self._room.count,
                        self._room.taken[source], address[0])  # fmt: skip
            _turn_away(plain)
            raise ConnectionAbortedError
        connection = Connected(self.family, self.type, self.proto, fileno=plain.detach())
        connection.room, connection.source = self._room, source
        return connection, address

    def close(self) -> None:
        """Closes it."""
        super().close()
        if (spare := getattr(self, "_spare", -1)) >= 0:
            os.close(spare)
            self._spare = -1

    def _turn_away_without_descriptor(self) -> None:
        # One descriptor is kept for this: whom nobody takes out of the queue would wake the event loop for ever.
        os.close(self._spare)
        try:
            _turn_away(super().accept()[0])
        except OSError:
            time.sleep(0.02)
        finally:
            self._spare = os.open(os.devnull, os.O_RDONLY)


def source_of(host: str) -> bytes:
    """What counts as one address, in bytes: all of an IPv4 address, the first half of an IPv6 address."""
    if ":" not in host:
        return socket.inet_aton(host)
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return packed[12:] if packed[:12] == b"\0" * 10 + b"\xff\xff" else packed[:8]


def _turn_away(connection: socket.socket) -> None:
    content = json.dumps({"error": "too many connections are open; try again soon"}).encode()
    head = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    head += b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(content)
    with connection:
        connection.setblocking(False)
        try:
            connection.send(head + content)
            connection.shutdown(socket.SHUT_WR)
            # Closing on top of unread bytes would take the answer back.
            connection.recv(2**16)
        except OSError:
            pass


def connections_allowed(requested: int) -> int:
    """How many connections the limit on open files leaves room for, at most `asked`."""
    try:
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        used = len(os.listdir("/dev/fd"))
    except (ImportError, OSError):
        return requested
    allowed = requested if soft == resource.RLIM_INFINITY else min(requested, max(LEAST, soft - used - RESERVED))
    if allowed < requested:
        log.warning(
            "%d open files are allowed (ulimit -n): at most %d connections instead of %d", soft, allowed, requested
        )
    return allowed


class OnceASecond(logging.Filter):
    """Lets each kind of message pass once a second and says how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        kind, now = str(record.msg)[:200], time.monotonic()
        last, left_out = self._last.get(kind, (-1.0, 0))
        if last >= 0 and now - last < 1:
            self._last[kind] = last, left_out + 1
            return False
        if len(self._last) > 100:
            self._last.clear()
        self._last[kind] = now, 0
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more like it since)", None
        return True


@contextmanager
def quiet_logs() -> Iterator[None]:
    """No client can fill the log: loggers of the service write each kind of message once a second at most."""
    loggers = [logging.getLogger(name) for name in ("covary", "asyncio", "uvicorn.error")]
    once = OnceASecond()
    # Clients' mistakes are answered and counted, not logged.
    loggers[2].setLevel(logging.ERROR)
    for logger in loggers:
        logger.addFilter(once)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(once)
