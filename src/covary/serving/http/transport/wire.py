"""One connection: deadlines for what a client owes, answers to requests that break off, and an end to all of it."""

from __future__ import annotations

import asyncio
import http
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from covary.serving.http.settings import ServeSettings
from covary.serving.http.transport.connections import Room, source_of

if TYPE_CHECKING:
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol
else:
    H11Protocol = object
    # Without the extra `serve`, of which `make_server` speaks, this module can be imported all the same.
    with suppress(ModuleNotFoundError):
        import h11
        from uvicorn.protocols.http.h11_impl import H11Protocol

# After a refusal a client may still be sending; closing at once would take the answer back.
LINGER = 1.0


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 connection with a bound on everything that waits for the client.

    The head of a request must arrive within `head_seconds` of its first byte, or of the connection; an answer must be
    taken within `read_seconds`; an idle connection is closed after `keep_seconds`. A client that closes its side gets
    answers to every whole request that it sent before, and then the connection is closed.
    """

    def __init__(self, *arguments: Any, room: Room, settings: ServeSettings, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._room, self._settings = room, settings
        self._ended = self._refused = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self.source = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.source = source_of(self.client[0]) if self.client else b""
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._room.works(self)
        self._head_timer = _cancel(self._head_timer)
        self._answer_timer = _cancel(self._answer_timer)
        # uvicorn leaves the timer of a connection that broke, which would keep all of this alive.
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self.transport.get_write_buffer_size():
            self._answer_timer = _cancel(self._answer_timer)
        super().data_received(data)
        self._watch()

    def handle_events(self) -> None:
        super().handle_events()
        self._settle()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_to_be_read()
        self._settle()
        self._watch()

    def eof_received(self) -> bool:  # type: ignore[override]
        self._ended = True
        if self._refused:
            self.transport.close()
        self._settle()
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_to_be_read()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._answer_timer = _cancel(self._answer_timer)
        self._expect_to_be_read()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn says of a request that is none, as the service says everything."""
        self.refuse(400, msg)

    def refuse(self, status: int, sentence: str) -> None:
        """Answers what is not yet answered with one sentence, and closes."""
        if self._refused or self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            content = json.dumps({"error": sentence}).encode()
            headers = [("content-type", "application/json"), ("connection", "close")]
            headers.append(("content-length", str(len(content))))
            head = h11.Response(status_code=status, headers=headers, reason=http.HTTPStatus(status).phrase.encode())
            if self._answering and self.scope["method"] == "HEAD":
                content = b""
            for event in (head, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self._answering:
            # Whoever still works on the request would answer it a second time.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._refused = True
        self._expect_to_be_read()
        if self._ended:
            self.transport.close()
        else:
            with suppress(OSError):
                # The client may have broken the connection, which nobody has noticed yet.
                self.transport.write_eof()
            self.flow.resume_reading()
            self._head_timer = _cancel(self._head_timer)
            self._head_timer = self.loop.call_later(LINGER, self.transport.abort)

    def make_way(self) -> None:
        """Closes it: a newcomer needs its place."""
        if self._owes_something and not self._refused:
            self.refuse(408, "the rest of the request did not come, and others need the connection's place")
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _owes_something(self) -> bool:
        """Whether some of a request is here and some of it is not."""
        if self.conn.their_state is h11.SEND_BODY:
            return True
        return not self._answering and bool(self.conn.trailing_data[0])

    def _settle(self) -> None:
        """Once the client has closed its side: answers what is whole, refuses what is half, then closes."""
        if not self._ended or self._refused or self.transport.is_closing():
            return
        if self._owes_something:
            self.refuse(400, "the request broke off in the middle")
        elif not self._answering:
            self.transport.close()

    def _watch(self) -> None:
        """Sees whose turn it is, and how long it may take."""
        if self._refused or self.transport.is_closing():
            return
        owing = self._owes_something
        if self._answering and not owing:
            self._room.works(self)
        elif owing or self.cycle is None:
            self._room.owes(self)
        else:
            self._room.idles(self)
            if self.timeout_keep_alive_task is None:
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )
        # A body that somebody waits for has a deadline of its own.
        if self._answering or (not owing and self.cycle is not None):
            self._head_timer = _cancel(self._head_timer)
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._settings.head_seconds, self._late)

    def _late(self) -> None:
        if self._refused or self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self._owes_something:
            self.refuse(408, f"a request whose head took over {self._settings.head_seconds:g} s to arrive")
        else:
            self.transport.close()

    def _expect_to_be_read(self) -> None:
        if self._answer_timer is None and self.transport.get_write_buffer_size():
            self._answer_timer = self.loop.call_later(self._settings.read_seconds, self._unread)

    def _unread(self) -> None:
        self._answer_timer = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
