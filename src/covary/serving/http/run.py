"""Running the service: uvicorn, the listening socket, signals."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import Any

from covary.detector import Detector
from covary.errors import missing_extra
from covary.serving.guard import Guard
from covary.serving.http.app import make_app
from covary.serving.http.settings import ServeSettings
from covary.serving.http.transport.connections import TAKEN_AT_ONCE, Listener, Room, connections_allowed, quiet_logs
from covary.serving.http.transport.wire import Connection


def make_server(detector: Detector, settings: ServeSettings, guard: Guard | None = None) -> Any:
    """A uvicorn server that listens already; `run()` serves until SIGINT or SIGTERM, then answers what it accepted.

    Raises:
        CovaryError: the address cannot be listened on.
    """
    try:
        import h11  # noqa: F401
        import uvicorn
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "uvicorn", "serve") from error

    class Server(uvicorn.Server):
        """Serves on a `Listener`."""

        async def serve(self, sockets: Any = None) -> None:
            with quiet_logs():
                await super().serve(sockets=sockets or [listener])

    app = make_app(detector, settings, guard)
    most = connections_allowed(settings.max_connections)
    room = Room(most, min(most, settings.max_connections_per_address))
    listener = Listener(settings, room)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=functools.partial(Connection, room=room, settings=settings),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=settings.keep_seconds,
        backlog=TAKEN_AT_ONCE,
        server_header=False,
    )
    app.state.room, app.state.address = room, listener.getsockname()
    return Server(config)


def serve(
    detector: Detector, settings: ServeSettings, on_ready: Callable[[str], None] = print, guard: Guard | None = None
) -> None:
    """Serves until told to stop; returns when every accepted request is answered. `on_ready` gets the address.

    Raises:
        CovaryError: the address cannot be listened on.
    """
    server = make_server(detector, settings, guard)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    on_ready(f"http://{host}:{server.config.app.state.address[1]}")
    for name in (signal.SIGINT, signal.SIGTERM):
        # uvicorn raises the signal again once all is answered; then there is nothing left to stop.
        signal.signal(name, lambda *_: None)
    server.run()
