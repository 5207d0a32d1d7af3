"""A small detector served, for tests: requests, answers, and a real server on a port of its own."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
from starlette.testclient import TestClient

import tiny
from covary.serving.http import ServeSettings, make_app, make_server

X = tiny.inputs()[0]
INFER = "/v2/models/detector/infer"


def body(x: np.ndarray, datatype: str = "UINT8", **more: Any) -> dict[str, Any]:
    """An inference request."""
    return {
        "inputs": [{"name": "input", "datatype": datatype, "shape": list(x.shape), "data": x.ravel().tolist()}],
        **more,
    }


def client_of(detector: Any, **changes: Any) -> TestClient:
    """A client of the application alone, without a socket."""
    return TestClient(make_app(detector, ServeSettings(**changes)), base_url="http://localhost")


def service_of(client: Any) -> Any:
    """The service behind a client of the application."""
    return client.app.state.service


def outputs(answer: httpx.Response) -> dict[str, list[Any]]:
    """Outputs of an answer by name."""
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


def sentence(answer: httpx.Response, status: int) -> str:
    """The one sentence of a refusal."""
    assert answer.status_code == status, answer.text
    (text,) = answer.json().values()
    assert list(answer.json()) == ["error"]
    assert "\n" not in text
    assert "Traceback" not in text
    return text


@contextmanager
def running(detector: Any, **changes: Any) -> Iterator[Any]:
    """A real server in a thread; its port is at `port`."""
    server = make_server(detector, ServeSettings(port=0, **changes))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    server.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


def until(true: Any, seconds: float = 10) -> None:
    """Returns when `true()` is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


def wire(method: str = "POST", path: str = INFER, content: Any = b"", **headers: str) -> bytes:
    """A request as it is sent; underscores in names of headers stand for hyphens."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    given = {"Host": "localhost", "Content-Length": str(len(content)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content


def connect(server: Any) -> socket.socket:
    """A connection to it."""
    return socket.create_connection(("127.0.0.1", server.port), 20)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def exchange(server: Any, content: bytes, half_close: bool = False) -> bytes:
    """All that is answered on a connection of its own, which the server has to close."""
    with connect(server) as connection:
        connection.sendall(content)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return rest(connection)
