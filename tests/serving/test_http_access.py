"""Who gets in: host names, web pages, keys; who acknowledges an alarm; what clients see where verdicts are hidden."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from starlette.testclient import TestClient

from covary.errors import CovaryError
from covary.serving.http import ServeSettings
from served import INFER, X, body, client_of, outputs, sentence, service_of

ACKNOWLEDGE = "/v2/models/detector/acknowledge"
PLACES = ["/", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/detector", "/v2/models/detector/ready",
          "/metrics", "/live.json"]  # fmt: skip
OPERATOR = {"x-api-key": "the operators key"}


@pytest.fixture(scope="module")
def client(fitted):
    with client_of(fitted) as client:
        yield client


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "LocalHost", "127.0.0.1:9", "[::1]", "[::1]:80"])
def test_hosts_of_this_machine(client, host):
    assert client.get("/v2", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:80", "[evil]:80", "[", "]", ":80", "a@localhost", "localhost.evil",
             "localhost:80:80", "localhost/", "é"],
)  # fmt: skip
def test_hosts_that_somebody_else_pointed_here(client, host):
    for place in (*PLACES, "/nothing", "/v2/"):
        assert "host name" in sentence(client.get(place, headers={"host": host.encode()}), 400)


def test_loopback_has_many_addresses():
    assert all(ServeSettings(host=host).loopback for host in ("127.0.0.1", "127.8.0.1", "::1", "LOCALHOST"))
    assert not any(ServeSettings(host=host).loopback for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"))


def test_no_web_page_of_others_makes_a_browser_ask(client):
    for origin in ("http://evil.example", "null", "http://localhost:3000", "", "x", "http://["):
        headers = {"origin": origin, "host": "localhost:8000"}
        assert "web page" in sentence(client.post(INFER, json=body(X[:1]), headers=headers), 403)
    for origin, host in (("http://localhost:8000", "localhost:8000"), ("http://LOCALHOST", "localhost:80")):
        assert client.post(INFER, json=body(X[:1]), headers={"origin": origin, "host": host}).status_code == 200


@pytest.mark.parametrize("key", ["schlüssel-geheim", "ключ-секретный"])
def test_keys_that_are_not_ascii(fitted, key):
    encodings = [key.encode()] + ([key.encode("latin-1")] if "ü" in key else [])
    with client_of(fitted, api_key=key) as client:
        for given in encodings:
            assert client.get("/v2", headers={"x-api-key": given}).status_code == 200
            assert client.get("/v2", headers={"authorization": b"Bearer " + given}).status_code == 200
        sentence(client.get("/v2", headers={"x-api-key": b"?" * len(key)}), 401)
        sentence(client.get("/v2", headers={"x-api-key": key.encode()[:-1]}), 401)


@pytest.mark.parametrize("key", ["short", "two lines\nof key", " padded secret", "bell\x07 rings"])
def test_keys_that_no_header_can_carry(key):
    for name in ("api_key", "operator_key"):
        with pytest.raises(CovaryError):
            ServeSettings(**{name: key})


@pytest.mark.parametrize("place", PLACES)
def test_what_can_be_got_has_a_head(client, place):
    head, got = client.head(place), client.get(place)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"] or place in ("/metrics", "/live.json")


def test_what_is_not_allowed_says_what_is(client):
    answer = client.delete("/v2")
    sentence(answer, 405)
    assert "GET" in answer.headers["allow"]


def alarmed(fitted: Any, **changes: Any) -> TestClient:
    """A client of a service whose stream alarm is raised."""
    client = client_of(fitted, **changes)
    client.__enter__()
    key = {"x-api-key": changes.get("api_key", "")}
    for _ in range(2):
        assert client.post(INFER, json=body(X[-60:]), headers=key).status_code == 200
    assert service_of(client).monitor.stream.alarmed
    return client


def test_an_operator_releases_the_alarm(fitted, tmp_path):
    place = tmp_path / "audit.jsonl"
    client = alarmed(fitted, api_key="the clients key", operator_key=OPERATOR["x-api-key"], audit=place)
    try:
        for given in ({}, {"x-api-key": "the clients key"}):
            sentence(client.post(ACKNOWLEDGE, headers=given), 401)
        assert service_of(client).monitor.stream.alarmed
        sentence(client.post("/v2/models/x/acknowledge", headers=OPERATOR), 404)
        for remark in (b"[]", b"{", b'{"by": 3}', b'{"x": ""}', json.dumps({"by": "x" * 501}).encode()):
            sentence(client.post(ACKNOWLEDGE, content=remark, headers=OPERATOR), 400)
        remark = {"by": "night shift", "reason": "a broken camera"}
        answer = client.post(ACKNOWLEDGE, json=remark, headers=OPERATOR)
        assert answer.status_code == 200
        assert answer.json()["acknowledged"]["alarm"]
        stream = service_of(client).monitor.stream
        assert not stream.alarmed
        assert stream.n == 0
        assert "not raised" in sentence(client.post(ACKNOWLEDGE, headers=OPERATOR), 409)
        live = client.get("/live.json", headers=OPERATOR).json()["stream"]
        assert not live["account"]["alarm"]
        assert live["path"] == [[0, 0.0], [0, 0.0]]
        assert "covary_stream_alarm 0.0" in client.get("/metrics", headers=OPERATOR).text
        for _ in range(2):
            client.post(INFER, json=body(X[-60:]), headers={"x-api-key": "the clients key"})
        assert stream.alarmed, "it can be raised again"
    finally:
        client.__exit__(None, None, None)
    events = [json.loads(line) for line in place.read_text().splitlines()]
    (seen,) = [e for e in events if e["event"] == "alarm acknowledged"]
    assert {"by": seen["by"], "reason": seen["reason"]} == remark
    assert seen["text"]
    assert [e["event"] for e in events].count("stream alarm") == 2


def test_without_any_key_nobody_releases_the_alarm(fitted):
    client = alarmed(fitted)
    assert "asks for a key" in sentence(client.post(ACKNOWLEDGE), 403)
    assert service_of(client).monitor.stream.alarmed
    client.__exit__(None, None, None)


def test_an_acknowledgement_that_cannot_be_written_down_releases_nothing(fitted):
    client = alarmed(fitted, operator_key=OPERATOR["x-api-key"])
    service = service_of(client)
    service.audit = Mock(return_value=False, problem="No space left on device", lost=1)
    assert "cannot be written" in sentence(client.post(ACKNOWLEDGE, headers=OPERATOR), 503)
    assert service.monitor.stream.alarmed
    client.__exit__(None, None, None)


def test_hidden_verdicts_reach_the_operator_alone(fitted, tmp_path):
    place = tmp_path / "audit.jsonl"
    with client_of(fitted, verdicts="hidden", operator_key=OPERATOR["x-api-key"], audit=place) as client:
        answer = client.post(INFER, json=body(X[-60:]))
        assert set(outputs(answer)) == {"logits", "predicted"}
        assert outputs(answer)["predicted"] == np.reshape(outputs(answer)["logits"], (60, -1)).argmax(1).tolist()
        assert answer.json()["parameters"] == {}
        for name in ("score", "p_value", "flagged", "evidence"):
            assert "unknown output" in sentence(client.post(INFER, json=body(X[:1], outputs=[{"name": name}])), 400)
        about = client.get("/v2/models/detector").json()
        assert [output["name"] for output in about["outputs"]] == ["logits", "predicted"]
        for secret in ("/metrics", "/live.json"):
            sentence(client.get(secret), 401)
        assert client.get("/live.json", headers=OPERATOR).json()["flagged"] > 0
        assert 'covary_inputs_total{verdict="flagged"}' in client.get("/metrics", headers=OPERATOR).text
    (event,) = [e for e in map(json.loads, place.read_text().splitlines()) if e["event"] == "answered"]
    assert all("flagged" in one for one in event["inputs"])


def test_hidden_verdicts_do_not_show_by_their_absence(fitted, monkeypatch, tmp_path):
    """Where an input cannot be judged, clients get the network's answer as always."""
    floats = np.full((1, 1, 8, 8), 3e38, np.float32)
    with client_of(fitted, verdicts="hidden", audit=tmp_path / "a") as client:
        assert outputs(client.post(INFER, json=body(floats, "FP32")))["predicted"] != [-1]
        monkeypatch.setattr(service_of(client).monitor, "judge", None)
        assert set(outputs(client.post(INFER, json=body(X[:1])))) == {"logits", "predicted"}
    assert '"verdict":null' in (tmp_path / "a").read_text()


@pytest.mark.parametrize("changes", [{"verdicts": "some"}, {"audit_failure": "pray"}])
def test_settings_by_name(changes):
    with pytest.raises(CovaryError, match="one of"):
        ServeSettings(**changes)


def test_the_alarm_and_the_lots_are_new_after_a_restart(fitted):
    from covary.serving.monitor import Monitor

    monitor = Monitor(fitted)
    before = monitor.stream
    monitor.restart_stream()
    assert monitor.stream is not before
    assert (monitor.stream.level, monitor.stream.calibration) == (before.level, before.calibration)


