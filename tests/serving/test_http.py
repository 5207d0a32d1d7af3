"""The service: the protocol as clients speak it, every bad request one sentence, no accepted request lost."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import bad_bodies
from covary.errors import CovaryError
from covary.serving.http import ServeSettings, protocol, tensors
from covary.serving.http.refusals import Refused
from served import INFER, X, body, client_of, outputs, running, sentence


@pytest.fixture(scope="module")
def client(fitted) -> Iterator[TestClient]:
    with client_of(fitted, max_bytes=60_000, max_inputs=200) as client:
        yield client


@pytest.fixture(scope="module")
def server(fitted) -> Iterator[str]:
    """A real one, on a port of its own."""
    with running(fitted, read_seconds=0.5, max_bytes=60_000) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def expected(fitted):
    return fitted.score(X)


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_works_unchanged(server, fitted, expected, binary):
    client = triton.InferenceServerClient(server)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("detector")
    assert not client.is_model_ready("another")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    about = client.get_model_metadata("detector")
    assert about["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    tensor = triton.InferInput("input", list(X.shape), "UINT8")
    tensor.set_data_from_numpy(X, binary_data=binary)
    requested = None if binary else [triton.InferRequestedOutput(n, binary_data=False) for n in protocol.OUTPUTS[:5]]
    found = client.infer("detector", [tensor], outputs=requested, request_id="mine")
    assert found.get_response()["id"] == "mine"
    np.testing.assert_allclose(found.as_numpy("score"), expected.score, rtol=1e-4)
    np.testing.assert_allclose(found.as_numpy("p_value"), expected.p_value, rtol=1e-6)
    assert (found.as_numpy("flagged") == expected.flagged).all()
    logits = fitted.network.logits(next(fitted.open(X).batches(1000)).x).numpy()
    np.testing.assert_array_equal(found.as_numpy("logits"), logits)
    client.close()


def test_floats_are_prepared_like_pictures(client, expected):
    floats = (X[:5].astype(np.float32) / 255)[:, None]
    for datatype, x in (("FP32", floats), ("FP64", floats.astype(np.float64))):
        found = outputs(client.post(INFER, json=body(x, datatype)))
        np.testing.assert_allclose(found["score"], expected.score[:5], rtol=1e-3)


def test_evidence_on_request_alone(client):
    found = outputs(client.post(INFER, json=body(X[-2:], outputs=[{"name": "evidence"}, {"name": "flagged"}])))
    evidence = [json.loads(text) for text in found["evidence"]]
    assert [e["flagged"] for e in evidence] == found["flagged"]
    assert {"explained_by", "layers", "raised_by"} <= set(evidence[0])
    assert "evidence" not in outputs(client.post(INFER, json=body(X[:1])))


def test_requests_at_the_same_time_share_passes_and_get_their_own(server, expected):
    sizes: list[float] = []

    def ask(i: int) -> bool:
        answer = httpx.post(f"http://{server}{INFER}", json=body(X[i : i + 1]), timeout=60)
        return bool(np.isclose(outputs(answer)["score"][0], expected.score[i], rtol=1e-3))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(0, 160, 4)))
    text = httpx.get(f"http://{server}/metrics").text
    count = float(text.split("covary_batch_inputs_count ")[1].split("\n")[0])
    total = float(text.split("covary_batch_inputs_sum ")[1].split("\n")[0])
    assert total / count > 1.5, sizes


def test_metrics(client):
    client.post(INFER, json=body(X[:3]))
    text = client.get("/metrics").text
    for name in ("request_seconds_bucket", "p_value_bucket", "inputs_total", "stream_log10_capital", "stream_alarm"):
        assert f"covary_{name}" in text
    assert 'covary_requests_total{status="200"}' in text


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"name": "x"}, 400, "`input`"),
        ({"datatype": "FP128"}, 400, "one of BOOL"),
        ({"datatype": "INT64"}, 400, "UINT8 images"),
        ({"datatype": "BOOL"}, 400, "other values"),
        ({"shape": [1, 8, 9]}, 400, "64 numbers"),
        ({"shape": [1, 64]}, 400, "images"),
        ({"shape": [-1, 8, 8]}, 400, "shape"),
        ({"shape": [True, 8, 8]}, 400, "shape"),
        ({"shape": [10**17]}, 400, "shape"),
        ({"data": "abc"}, 400, "list"),
        ({"data": [[1, 2], [3]]}, 400, "ragged"),
        ({"data": [300] * 64}, 400, "beyond UINT8"),
        ({"data": [-1] * 64}, 400, "beyond UINT8"),
        ({"data": [10**30] * 64}, 400, "beyond UINT8"),
        ({"data": [None] * 64}, 400, "other values"),
        ({"parameters": {"binary_data_size": 64}}, 400, "both"),
        ({"parameters": 3}, 400, "object"),
        ({"data": [], "shape": [0, 8, 8]}, 400, "without inputs"),
    ],
)
def test_bad_tensors(client, change, status, message):
    request = body(X[:1])
    request["inputs"][0] |= change
    assert message in sentence(client.post(INFER, json=request), status)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "object"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_00, "no JSON"),
        (b'{"id": 3}', "id"),
        (b'{"inputs": []}', "one tensor"),
        (b'{"inputs": [{}, {}]}', "one tensor"),
    ],
)
def test_bad_json(client, content, message):
    assert message in sentence(client.post(INFER, content=content), 400)


def test_numbers_that_are_none(client):
    x = np.zeros((1, 1, 8, 8), np.float32)
    text = json.dumps(body(x, "FP32")).replace("0.0", "NaN", 1)
    assert "NaN" in sentence(client.post(INFER, content=text), 400)
    huge = body(x, "FP32")
    huge["inputs"][0]["data"][0] = 1e300
    assert "infinity" in sentence(client.post(INFER, json=huge), 400)


def test_bad_binary(client):
    x = X[:1].tobytes()
    head = json.dumps({"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, 8, 8],
                                   "parameters": {"binary_data_size": 64}}]}).encode()  # fmt: skip
    name = "inference-header-content-length"
    assert client.post(INFER, content=head + x, headers={name: str(len(head))}).status_code == 200
    for length, tail in ((len(head), x[:-1]), (len(head), x + b"0"), (10**6, x), (-1, x), (3, x), (0, x), ("x", x)):
        sentence(client.post(INFER, content=head + tail, headers={name: str(length)}), 400)
    short = head.replace(b'"binary_data_size": 64', b'"binary_data_size": 63')
    assert "64 bytes" in sentence(client.post(INFER, content=short + x, headers={name: str(len(short))}), 400)


def test_bad_outputs(client):
    for requested, message in (([{"name": "x"}], "unknown output"), ("x", "no list"), ([3], "no list"),
                         ([{"name": "score", "parameters": {"classification": 3}}], "classification"),
                         ([{"name": "score", "parameters": {"binary_data": 1}}], "boolean")):  # fmt: skip
        assert message in sentence(client.post(INFER, json=body(X[:1], outputs=requested)), 400)


def test_other_places_and_limits(client):
    assert "no model 'x'" in sentence(client.post("/v2/models/x/infer", json=body(X[:1])), 404)
    assert "version" in sentence(client.post("/v2/models/detector/versions/2/infer", json=body(X[:1])), 404)
    sentence(client.get("/nothing"), 404)
    sentence(client.get(INFER), 405)
    assert "at most 60000" in sentence(client.post(INFER, content=b" " * 60_001), 413)
    assert "at most 200" in sentence(client.post(INFER, json=body(np.zeros((201, 8, 8), np.uint8))), 413)
    assert "encoding" in sentence(client.post(INFER, content=b"x", headers={"content-encoding": "gzip"}), 415)
    assert "host" in sentence(client.get("/live.json", headers={"host": "evil.example:8000"}), 400)


def test_a_key_guards_everything_but_health_and_the_empty_page(fitted):
    with client_of(fitted, api_key="a long secret") as client:
        places = ["/v2", "/v2/models/detector", "/v2/models/detector/ready", "/metrics", "/live.json"]
        for given in ({}, {"authorization": "Bearer a long secre"}, {"x-api-key": "a long secret "},
                      {"authorization": "Basic a long secret"}, {"x-api-key": "\u00e9".encode("latin-1")}):  # fmt: skip
            for place in places:
                assert "key" in sentence(client.get(place, headers=given), 401)
            assert "key" in sentence(client.post(INFER, json=body(X[:1]), headers=given), 401)
        for given in ({"authorization": "Bearer a long secret"}, {"x-api-key": "a long secret"}):
            assert all(client.get(place, headers=given).status_code == 200 for place in places)
            assert client.post(INFER, json=body(X[:1]), headers=given).status_code == 200
        assert client.get("/v2/health/live").status_code == client.get("/").status_code == 200


def test_too_many_open_requests_are_turned_away(fitted, monkeypatch):
    with client_of(fitted, max_requests=1) as client:
        service, gate = client.app.state.service, threading.Event()  # type: ignore[union-attr]
        work = service.batcher._work
        monkeypatch.setattr(service.batcher, "_work", lambda jobs: (gate.wait(30), work(jobs)))
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.post, INFER, json=body(X[:1]))
            while service.batcher._queue.qsize() or not service.metrics._waiting._value.get():
                time.sleep(0.01)
            answer = client.post(INFER, json=body(X[:1]))
            assert "1 requests are open" in sentence(answer, 429)
            assert answer.headers["retry-after"] == "1"
            gate.set()
            assert first.result().status_code == 200


def test_one_bad_request_does_not_spoil_the_others(fitted, monkeypatch):
    with client_of(fitted, max_wait_ms=300.0) as client:
        service = client.app.state.service  # type: ignore[union-attr]
        watch = service.monitor.watch

        def failing(x, ids):
            if any(name.startswith("bad") for name in ids):
                raise RuntimeError("no such token")
            return watch(x, ids)

        monkeypatch.setattr(service.monitor, "watch", failing)
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda name: client.post(INFER, json=body(X[:1], id=name)), ["a", "bad", "b"]))
        assert [a.status_code for a in answers] == [200, 400, 200]
        assert "no such token" in sentence(answers[1], 400)


def test_what_cannot_be_examined_is_said(fitted, monkeypatch):
    with client_of(fitted) as client:
        service = client.app.state.service  # type: ignore[union-attr]
        monkeypatch.setattr(service.monitor, "judge", None)
        assert "could not be examined" in sentence(client.post(INFER, json=body(X[:1])), 500)


def test_half_requests_over_the_wire(server):
    host, port = server.split(":")
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n".encode()

    def send(content: bytes, half_close: bool) -> bytes:
        with socket.create_connection((host, int(port)), 20) as connection:
            connection.sendall(content)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            parts = []
            while part := connection.recv(4096):
                parts.append(part)
        return b"".join(parts)

    assert b"400 " in send(head + b'{"inp', True)
    assert b"broke off" in send(head + b'{"inp', True)
    assert b"408 " in send(head + b'{"inp', False)
    found = send(b"nonsense\r\n\r\n", False)
    assert b"400 " in found
    assert list(json.loads(found.split(b"\r\n\r\n", 1)[1])) == ["error"]
    full = json.dumps(body(X[:1])).encode()
    assert b"200 OK" in send(head.replace(b"500", str(len(full)).encode()) + full, True)
    assert b"413 " in send(head.replace(b"500", b"70000") + b" " * 70_000, False)
    assert httpx.get(f"http://{server}/v2/health/live").status_code == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad_bodies.requests())
def test_no_body_makes_it_fail(client, request_):
    content, headers = request_
    answer = client.post(INFER, content=content, headers=headers)
    assert answer.status_code in (200, 400, 413)
    if answer.status_code != 200:
        sentence(answer, answer.status_code)


@pytest.mark.parametrize("datatype", list(tensors.DATATYPES))
@given(st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_tensors_there_and_back(datatype, seed):
    dtype = tensors.DATATYPES[datatype]
    raw = np.random.default_rng(seed).integers(0, 2 if datatype == "BOOL" else 100, (2, 3)).astype(dtype)
    assert tensors.datatype_of(raw) == datatype
    np.testing.assert_array_equal(tensors.from_bytes(tensors.to_bytes(raw), datatype, [2, 3]), raw)
    np.testing.assert_array_equal(tensors.from_json(tensors.to_json(raw), datatype, [2, 3]), raw)
    with pytest.raises(Refused):
        tensors.from_bytes(tensors.to_bytes(raw)[1:], datatype, [2, 3])


def test_strings_and_infinities_as_they_are_written():
    assert tensors.to_bytes(["a", "é"]) == b"\x01\0\0\0a\x02\0\0\0\xc3\xa9"
    assert tensors.to_json(np.array([1.0, np.inf, np.nan])) == [1.0, None, None]


def test_the_audit_log_tells_every_verdict(fitted, tmp_path, expected):
    place = tmp_path / "audit.jsonl"
    with client_of(fitted, audit=str(place), name="m") as client:
        client.post("/v2/models/m/infer", json=body(X[:2], id="a\nb"))
        client.post("/v2/models/m/infer", content=b"{")
    events = [json.loads(line) for line in place.read_text().splitlines()]
    assert [e["event"] for e in events] == ["started", "accepted", "answered", "refused", "stopped"]
    inputs = events[2]["inputs"]
    assert [i["id"] for i in inputs] == ["a\nb/0", "a\nb/1"]
    assert inputs[0]["p_value"] == pytest.approx(expected.p_value[0])
    assert inputs[1]["sha256"] == hashlib.sha256(X[1].tobytes()).hexdigest()
    assert events[3]["status"] == 400
    assert "no JSON" in events[3]["problem"]


def test_the_alarm_is_told_once(fitted, tmp_path):
    place = tmp_path / "audit.jsonl"
    with client_of(fitted, audit=str(place)) as client:
        for _ in range(2):
            client.post(INFER, json=body(X[-60:]))
        assert outputs(client.post(INFER, json=body(X[:1])))
        assert client.post(INFER, json=body(X[:1])).json()["parameters"]["stream_alarm"] is True
        live = client.get("/live.json").json()
    events = [json.loads(line)["event"] for line in place.read_text().splitlines()]
    assert events.count("stream alarm") == 1
    assert live["stream"]["account"]["alarm"]
    assert live["flagged"] >= 100
    assert len(live["cards"]) == 4
    assert live["cards"][0]["picture"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    "changes", [{"max_batch": 0}, {"max_bytes": 0}, {"max_wait_ms": -1.0}, {"api_key": "short"}, {"read_seconds": 0.0}]
)
def test_settings_that_make_no_sense(changes):
    with pytest.raises(CovaryError):
        ServeSettings(**changes)


def started(folder: Path, *more: str, **options: Any) -> tuple[subprocess.Popen, str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "covary", "serve", str(folder), "--trust-code", "--port", "0", "--json", *more],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )  # fmt: skip
    message = ""
    assert process.stdout is not None
    while not message.endswith("}\n"):
        line = process.stdout.readline()
        assert line, "the service did not start"
        message += line
    return process, json.loads(message)["address"]


def test_a_stop_loses_no_accepted_request(saved_folder, tmp_path):
    place = tmp_path / "audit.jsonl"
    process, address = started(saved_folder, "--audit", str(place), "--max-wait-ms", "0")
    answered: list[str] = []
    broken: list[str] = []
    begun = threading.Event()

    def ask(k: int) -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            for i in range(10_000):
                name = f"{k}-{i}"
                try:
                    answer = client.post(INFER, json=body(X[:1], id=name))
                except httpx.TransportError:
                    broken.append(name)
                    return
                assert answer.status_code == 200
                answered.append(name)
                if len(answered) > 20:
                    begun.set()

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    assert begun.wait(120)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert process.wait(60) == 0
    process.stdout.close()
    events = [json.loads(line) for line in place.read_text().splitlines()]
    accepted = {e["request"] for e in events if e["event"] == "accepted"}
    assert accepted == {e["request"] for e in events if e["event"] == "answered"}
    assert accepted == set(answered)
    assert not accepted & set(broken)
    assert events[-1]["event"] == "stopped"


def test_an_address_in_use_is_one_sentence(saved_folder, server, run_cli):
    code, _, err = run_cli("serve", "--trust-code", saved_folder, "--port", server.split(":")[1])
    assert code == 2
    assert "cannot be listened on" in err


def test_key_files(saved_folder, run_cli, tmp_path):
    (tmp_path / "key").write_text("\n")
    for file, message in ((tmp_path / "key", "empty"), (tmp_path / "none", "cannot be read")):
        code, _, err = run_cli("serve", "--trust-code", saved_folder, "--api-key-file", file)
        assert (code, message in err) == (2, True)
