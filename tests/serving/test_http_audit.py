"""The audit log: whole lines or none, what is lost is counted and said, requests are refused without it or go on."""

from __future__ import annotations

import json
import os

import pytest

from covary.serving.http.audit import AuditLog
from served import INFER, X, body, client_of, sentence, service_of

FULL = "/dev/full"
READY = ("/v2/health/ready", "/v2/models/detector/ready")

pytestmark = pytest.mark.skipif(not os.path.exists(FULL), reason="this system has no device that is full")


@pytest.fixture
def full_disk(monkeypatch):
    """Lets so many bytes be written to a descriptor other than the standard ones, then none."""
    room, write = [0], os.write

    def limited(file: int, data: bytes) -> int:
        if file <= 2:
            return write(file, data)
        if not room[0]:
            raise OSError(28, "No space left on device")
        part = data[: room[0]]
        room[0] -= len(part)
        return write(file, part)

    monkeypatch.setattr(os, "write", limited)
    return room


def test_a_full_disk_refuses_requests_and_says_so(fitted):
    with client_of(fitted, audit=FULL) as client:
        message = sentence(client.post(INFER, json=body(X[:1])), 503)
        assert "the audit log cannot be written (No space left on device)" in message
        for place in READY:
            assert "audit log" in sentence(client.get(place), 503)
        assert client.get("/v2/health/live").status_code == 200
        assert service_of(client).monitor.counts.seen == 0
        assert "covary_audit_failing 1.0" in client.get("/metrics").text


def test_a_full_disk_is_shouted_of_where_requests_go_on(fitted, caplog):
    with client_of(fitted, audit=FULL, audit_failure="continue") as client:
        assert client.post(INFER, json=body(X[:1])).status_code == 200
        sentence(client.post(INFER, content=b"{"), 400)
        for place in READY:
            answer = client.get(place)
            assert (answer.status_code, list(answer.json())) == (200, ["warning"])
        assert "audit log cannot be written" in caplog.text
        assert "covary_audit_events_lost 4.0" in client.get("/metrics").text


def test_verdicts_that_the_log_does_not_hold_are_not_given(fitted, monkeypatch, tmp_path):
    with client_of(fitted, audit=tmp_path / "a") as client:
        audit, attempt = service_of(client).audit, AuditLog._attempt

        def failing(self, event, facts):
            if event == "answered":
                self.problem = "No space left on device"
                return False
            return attempt(self, event, facts)

        monkeypatch.setattr(AuditLog, "_attempt", failing)
        assert "outputs" not in client.post(INFER, json=body(X[:1])).json()
        monkeypatch.undo()
        assert client.post(INFER, json=body(X[:1])).status_code == 200
        assert audit.lost == 1
        assert client.get(READY[0]).status_code == 200


def test_lines_are_whole_or_not_there(full_disk, tmp_path):
    place = tmp_path / "a"
    audit, full_disk[0] = AuditLog(place), 10**6
    assert audit("one", x="a")
    full_disk[0] = 30
    assert not audit("two", x="b" * 100)
    assert not audit.works()
    assert not audit("three")
    full_disk[0] = 10**6
    assert audit.works()
    assert audit("four")
    audit.close()
    assert not audit.problem
    events = [json.loads(line) for line in place.read_text().splitlines()]
    assert [e["event"] for e in events] == ["one", "events lost", "four"]
    assert (events[1]["events"], events[1]["reason"], audit.lost) == (2, "No space left on device", 2)


def test_half_a_line_in_a_pipe_is_ended(full_disk):
    read, write = os.pipe()
    audit, full_disk[0] = AuditLog(None), 20
    audit._file = write
    assert not audit("one", x="b" * 100)
    full_disk[0] = 10**6
    assert audit("two")
    os.close(write)
    with os.fdopen(read, "rb") as reader:
        lines = reader.read().splitlines()
    assert [json.loads(line)["event"] for line in lines[1:]] == ["events lost", "two"]
