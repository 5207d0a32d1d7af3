"""Running the service: uvicorn, signals, and an answer also to requests that break off in the middle."""

from __future__ import annotations

import json
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

from covary.detector import Detector
from covary.errors import CovaryError, missing_extra
from covary.serving.http.app import make_app
from covary.serving.http.settings import ServeSettings


def make_server(detector: Detector, settings: ServeSettings) -> Any:
    """A uvicorn server; `run()` serves until SIGINT or SIGTERM, then answers every accepted request and returns."""
    try:
        import h11
        import uvicorn
        from uvicorn.protocols.http.h11_impl import H11Protocol
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "uvicorn", "serve") from error

    class Answering(H11Protocol):
        """Clients that close their side early: a whole request still gets its answer, half a one gets a 400."""

        def send_400_response(self, msg: str) -> None:
            content = json.dumps({"error": msg}).encode()
            headers = [("content-type", "application/json"), ("connection", "close")]
            headers.append(("content-length", str(len(content))))
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def eof_received(self) -> bool | None:  # type: ignore[override]
            if self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.SEND_RESPONSE:
                self.send_400_response("the request broke off in the middle of its body")
                return None
            if self.tasks:
                self.cycle.keep_alive = False  # nothing more can come
                return True
            return None

    config = uvicorn.Config(
        make_app(detector, settings),
        host=settings.host,
        port=settings.port,
        http=Answering,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=30,
        server_header=False,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return uvicorn.Server(config)


def serve(detector: Detector, settings: ServeSettings, told: Callable[[str], None] = print) -> None:
    """Serves until told to stop; returns when every accepted request is answered. `told` gets the address.

    Raises:
        CovaryError: the address cannot be listened on.
    """
    server = make_server(detector, settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as problem:
        listening.close()
        where = f"{settings.host}:{settings.port}"
        raise CovaryError(f"{where} cannot be listened on ({problem.strerror})", "", "choose another --port") from None
    with listening:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        told(f"http://{host}:{listening.getsockname()[1]}")
        for name in (signal.SIGINT, signal.SIGTERM):
            # uvicorn raises the signal again once all is answered; then there is nothing left to stop.
            signal.signal(name, lambda *_: None)
        server.run(sockets=[listening])
