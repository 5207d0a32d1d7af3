"""Connections: each is closed when it is done with, none that owes something is held, newcomers find a place."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading

import pytest

import served
from covary.errors import CovaryError
from covary.serving.http import ServeSettings
from covary.serving.http.transport import connections, wire
from covary.serving.http.transport.connections import Listener, OnceASecond, Room, connections_allowed, source_of
from served import INFER, X, body, connect, exchange, rest, running, until

HEALTH = served.wire("GET", "/v2/health/live", Connection="close")
SLOW = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{{".encode()


def held_back(server, monkeypatch) -> threading.Event:
    """Keeps every pass waiting until the event is set."""
    gate, service = threading.Event(), server.config.app.state.service
    work = service.batcher._work
    monkeypatch.setattr(service.batcher, "_work", lambda jobs: (gate.wait(30), work(jobs)))
    return gate


def test_a_connection_ends_with_its_request_while_others_are_at_work(fitted, monkeypatch):
    with running(fitted) as server:
        gate = held_back(server, monkeypatch)
        with connect(server) as at_work:
            at_work.sendall(served.wire(content=body(X[:1]), Connection="close"))
            until(lambda: server.server_state.tasks)
            for _ in range(20):
                with connect(server) as one:
                    one.sendall(served.wire("GET", "/v2/health/live"))
                    assert b"200 OK" in one.recv(1000)
            until(lambda: len(server.server_state.connections) == 1, 5)
            gate.set()
            assert b"200 OK" in rest(at_work)
        until(lambda: not server.server_state.connections)


def test_requests_sent_before_the_client_closed_its_side_are_all_answered(fitted):
    with running(fitted) as server:
        five = b"".join(served.wire(content=body(X[:1], id=f"n{i}")) for i in range(5))
        found = exchange(server, five, half_close=True)
        assert found.count(b"HTTP/1.1 200 OK") == 5
        assert all(f'"id":"n{i}"'.encode() in found for i in range(5))
        found = exchange(server, five[:-7], half_close=True)
        assert found.count(b"HTTP/1.1 200 OK") == 4
        assert b"broke off" in found


def test_half_a_head_has_a_deadline(fitted):
    with running(fitted, head_seconds=0.3) as server:
        assert exchange(server, b"") == b""
        found = exchange(server, b"POST /v2 HTTP/1.1\r\nHo")
        assert b"408 " in found
        assert "head took over 0.3 s" in json.loads(found.split(b"\r\n\r\n")[1])["error"]
        with connect(server) as kept:
            # The second request of a connection has it, too, however often a byte of it comes.
            kept.sendall(HEALTH.replace(b"Connection: close\r\n", b""))
            assert b"200 OK" in kept.recv(1000)
            kept.sendall(b"GET ")
            assert b"408 " in rest(kept)


def test_what_is_left_of_a_refused_request_has_a_deadline(fitted):
    with running(fitted, head_seconds=0.3) as server, connect(server) as connection:
        connection.sendall(SLOW.replace(b"detector", b"another"))
        assert b"404 " in rest(connection)


def test_an_answer_that_nobody_takes_is_broken_off(fitted):
    with running(fitted, read_seconds=0.4) as server, connect(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(0.2)
        questions = served.wire("GET", "/") * 100_000
        with pytest.raises(OSError, match=r"timed out|reset|pipe"):
            connection.sendall(questions)
        until(lambda: not server.server_state.connections)


def test_slow_bodies_keep_no_place_from_whole_requests(fitted):
    with running(fitted, max_requests=2) as server:
        slow = [connect(server) for _ in range(4)]
        for connection in slow:
            connection.sendall(SLOW)
        until(lambda: len(server.server_state.tasks) == 4)
        assert b"200 OK" in exchange(server, served.wire(content=body(X[:1]), Connection="close"))
        for connection in slow:
            connection.close()


def test_slow_bodies_give_way_to_others_memory(fitted, monkeypatch):
    monkeypatch.setattr("covary.serving.http.transport.bodies.AT_ONCE", 1)
    with running(fitted, max_bytes=3000) as server, connect(server) as slow:
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2900\r\n\r\n".encode()
        slow.sendall(head + b" " * 2800)
        until(lambda: server.server_state.tasks)
        assert b"200 OK" in exchange(server, served.wire(content=body(X[:1]), Connection="close"))
        assert b"gave way" in rest(slow)


@pytest.mark.parametrize("limits", [{"max_connections": 4}, {"max_connections_per_address": 4}])
def test_newcomers_take_the_place_of_those_who_owe(fitted, monkeypatch, limits):
    monkeypatch.setattr(connections, "GRACE", 0.0)
    with running(fitted, **limits) as server:
        held = [connect(server) for _ in range(8)]
        for connection in held[::2]:
            connection.sendall(b"GET / HT")
        assert all(b"200 OK" in exchange(server, HEALTH) for _ in range(6))
        assert server.config.app.state.room.count <= 4
        for connection in held:
            connection.close()


def test_who_is_at_work_is_not_sent_away_and_newcomers_are_told(fitted, monkeypatch):
    monkeypatch.setattr(connections, "GRACE", 0.0)
    with running(fitted, max_connections=2) as server:
        gate = held_back(server, monkeypatch)
        at_work = [connect(server) for _ in range(2)]
        for connection in at_work:
            connection.sendall(served.wire(content=body(X[:1]), Connection="close"))
        until(lambda: len(server.server_state.tasks) == 2)
        found = exchange(server, HEALTH)
        assert b"503 " in found
        assert "too many connections" in json.loads(found.split(b"\r\n\r\n")[1])["error"]
        gate.set()
        for connection in at_work:
            assert b"200 OK" in rest(connection)
            connection.close()


def test_idle_connections_give_way_last():
    room, gone = Room(3, 3), []

    class Waiting:
        source = b"a"

        def make_way(self) -> None:
            gone.append(self)

    peers = [Waiting(), Waiting(), Waiting()]
    for peer, says in zip(peers, (room.idles, room.owes, room.works), strict=True):
        assert room.enter(b"a")
        says(peer)
    assert not room.enter(b"a"), "nobody is sent away at once"
    for waiting in (room._idle, room._owing):
        for peer in waiting:
            waiting[peer] -= 60
    assert [room.enter(b"a"), room.enter(b"a"), room.enter(b"a")] == [True, True, False]
    assert gone == [peers[1], peers[0]]
    for _ in range(5):
        room.leave(b"a")
    assert (room.count, dict(room.taken)) == (0, {})


def test_one_address_cannot_take_the_places_of_others():
    room = Room(10, 2)
    assert [room.enter(source_of(host)) for host in ("10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2")] == [
        True, True, False, True,
    ]  # fmt: skip
    assert source_of("2001:db8::1") == source_of("2001:db8::2") != source_of("2001:db8:0:1::1")
    assert source_of("::ffff:10.0.0.1") == source_of("10.0.0.1")


def test_answers_leave_at_once(fitted):
    """asyncio sets TCP_NODELAY where the listening socket names its protocol."""
    with running(fitted) as server, connect(server) as connection:
        connection.sendall(served.wire("GET", "/v2/health/live"))
        assert b"200 OK" in connection.recv(1000)
        (ours,) = server.server_state.connections
        assert ours.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    listener = Listener(ServeSettings(port=0), Room(1, 1))
    assert listener.proto == socket.IPPROTO_TCP
    listener.close()


def test_without_descriptors_newcomers_are_turned_away(monkeypatch):
    listener = Listener(ServeSettings(port=0), Room(5, 5))
    with listener, socket.create_connection(listener.getsockname(), 5) as connection:
        plain, tries = socket.socket.accept, []

        def exhausted(self):
            tries.append(1)
            if len(tries) == 1:
                raise OSError(24, "Too many open files")
            return plain(self)

        monkeypatch.setattr(socket.socket, "accept", exhausted)
        with pytest.raises(ConnectionAbortedError):
            listener.accept()
        assert b"503 " in rest(connection)
        assert len(tries) == 2


def test_the_limit_on_open_files_bounds_connections(monkeypatch):
    resource = pytest.importorskip("resource")
    used = len(os.listdir("/dev/fd"))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (used + connections.RESERVED + 50, 10**6))
    assert 40 <= connections_allowed(512) <= 50
    assert connections_allowed(20) == 20
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10, 10**6))
    assert connections_allowed(512) == connections.LEAST


def test_a_kind_of_message_is_logged_once_a_second(monkeypatch, caplog):
    now = [100.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    logger = logging.getLogger("covary.test-of-the-log")
    logger.addFilter(OnceASecond())
    for i in range(1000):
        logger.warning("no place for %d", i)
    logger.warning("something else")
    now[0] += 1.5
    logger.warning("no place for %d", 1000)
    assert [r.getMessage() for r in caplog.records] == [
        "no place for 0", "something else", "no place for 1000 (999 more like it since)",
    ]  # fmt: skip


def test_the_address_is_told_once_it_can_be_reached(fitted):
    listener = Listener(ServeSettings(port=0), Room(1, 1))
    place = listener.getsockname()
    with listener, socket.create_connection(place, 5), pytest.raises(CovaryError, match="cannot be listened on"):
        Listener(ServeSettings(port=place[1]), Room(1, 1))


def test_a_client_that_is_gone_is_refused_without_a_traceback(fitted, monkeypatch, caplog):
    monkeypatch.setattr(wire, "LINGER", 0.2)
    with running(fitted, head_seconds=0.3) as server, connect(server) as gone:
        gone.sendall(b"GET / HT")
        until(lambda: server.server_state.connections)
        (ours,) = server.server_state.connections

        def broken() -> None:
            raise OSError(107, "Transport endpoint is not connected")

        ours.transport.write_eof = broken
        until(lambda: not server.server_state.connections)
    assert "Traceback" not in caplog.text
    assert "Exception" not in caplog.text


def test_a_broken_body_is_answered_once(fitted, monkeypatch, caplog):
    """The connection refuses it; whoever still works on it must not answer it a second time."""
    monkeypatch.setattr(wire, "LINGER", 0.2)
    with running(fitted) as server:
        head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        for method in ("POST", "HEAD"):
            found = exchange(server, head.replace("POST", method).encode() + b"5\r\nabcde\r\nno size\r\n")
            assert found.count(b"HTTP/1.1") == 1
            assert found.startswith((b"HTTP/1.1 400", b"HTTP/1.1 405"))
    assert "Traceback" not in caplog.text
    assert "Exception" not in caplog.text
