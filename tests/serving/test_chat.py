"""Chat completions: what is answered, what the guard says beside it, and every refusal in OpenAI's shape."""

from __future__ import annotations

import json
import subprocess
import sys

import openai
import pytest
from starlette.testclient import TestClient

import texts
from covary.detector import Detector
from covary.serving.http import ServeSettings, make_app
from covary.text.completions import greedy
from served import service_of

CHAT = "/v1/chat/completions"
ODD = " ".join(["wolf"] * 30)
CLEAN = texts.records(1, 7)[0]["prompt"]
KEY = "a key of some length"


def asking(content=CLEAN, **more):
    return {"model": "assistant", "messages": [{"role": "user", "content": content}], **more}


@pytest.fixture(scope="module")
def served(of_texts, guard):
    with TestClient(
        make_app(of_texts, ServeSettings(name="assistant", max_new_tokens=20), guard), base_url="http://localhost"
    ) as client:
        yield client


@pytest.fixture
def client(served, guard, monkeypatch):
    """Answers go on whatever the tiny model's verdicts are."""
    monkeypatch.setattr(guard, "policy", "mark")
    return served


def chunks(response):
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def said(model, prompt, most):
    from covary.text.records import read_texts
    from covary.text.tokens import prompt_tokens

    (tokens,) = greedy(model, [prompt_tokens(model, read_texts([prompt])[0])], most)
    return model.tokenizer.decode(tokens, skip_special_tokens=True), tokens[-1] in model.ends


def test_an_answer_is_the_models_with_its_verdict_in_headers_and_field(client, guard):
    response = client.post(CHAT, json=asking(max_tokens=6))
    found = response.json()
    text, ended = said(guard.model, CLEAN, 6)
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == ("stop" if ended else "length")
    own = found["covary"]
    assert set(own) == {"flagged", "p_value", "score", "tokens", "policy", "false_stop_rate"}
    assert response.headers["x-covary-verdict"] == ("flagged" if own["flagged"] else "passed")
    assert float(response.headers["x-covary-p-value"]) == pytest.approx(own["p_value"], rel=1e-4)
    assert float(response.headers["x-covary-score"]) == pytest.approx(own["score"], rel=1e-4)
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + found["usage"]["completion_tokens"]


def test_a_stream_joins_to_the_same_answer(client, guard):
    whole = client.post(CHAT, json=asking(max_tokens=6)).json()
    response = client.post(CHAT, json=asking(max_tokens=6, stream=True, stream_options={"include_usage": True}))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-covary-verdict"] in ("passed", "flagged")
    *pieces, last, usage = chunks(response)
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert text == whole["choices"][0]["message"]["content"]
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (last["covary"], usage["usage"]) == (whole["covary"], whole["usage"])
    assert pieces[0]["covary"]["tokens"] == 0
    assert len({piece["id"] for piece in [*pieces, last, usage]}) == 1


def test_temperature_draws_and_a_seed_draws_the_same_again(client):
    def answer(seed):
        body = asking(max_tokens=8, temperature=2, seed=seed)
        return client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in (1, 2, 3)}) > 1


def test_an_answer_ends_before_a_stop_string(client, guard):
    text, _ = said(guard.model, CLEAN, 6)
    word = text.split()[1]
    found = client.post(CHAT, json=asking(max_tokens=6, stop=[word])).json()["choices"][0]
    assert (found["message"]["content"], found["finish_reason"]) == (text[: text.index(word)], "stop")


def test_a_stopped_answer_tells_nothing(served):
    response = served.post(CHAT, json=asking(ODD))
    (choice,) = response.json()["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("content_filter", "")
    assert "guard stopped" in choice["message"]["refusal"]
    assert response.headers["x-covary-verdict"] == "flagged"
    *_, last = chunks(served.post(CHAT, json=asking(ODD, stream=True)))
    assert (last["choices"][0]["finish_reason"], last["covary"]["flagged"]) == ("content_filter", True)


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ("{", 400, None, "not JSON"),
        ([], 400, None, "no JSON object"),
        (asking(model="other"), 404, "model", "no model 'other'; expected 'assistant'"),
        (asking(model=3), 400, "model", "names no model"),
        (asking(messages=[]), 400, "messages", "no messages"),
        (asking(messages=[{"role": "wizard", "content": "a"}]), 400, "messages[0].role", "the role 'wizard'"),
        (asking(messages=[{"role": "tool", "content": "a"}]), 400, "messages[0].role", "the role 'tool'"),
        (asking([{"type": "image_url"}]), 400, "messages[0].content", "no text"),
        (asking(messages=[{"role": "assistant", "content": "a"}]), 400, "messages", "the assistant's turn"),
        (asking(messages=[{"role": "system", "content": "a"}] * 2), 400, "messages", "without a chat template"),
        (asking(tools=[{"type": "function"}]), 400, "tools", "leave tools away"),
        (asking(n=2), 400, "n", "leave n away"),
        (asking(n=True), 400, "n", "leave n away"),
        (asking(logprobs=True), 400, "logprobs", "leave logprobs away"),
        (asking(best_of=3), 400, "best_of", "a request with 'best_of'"),
        (asking(temperature=3), 400, "temperature", "a number from 0 to 2"),
        (asking(top_p=0), 400, "top_p", "above 0"),
        (asking(max_tokens=0), 400, "max_tokens", "a whole number from 1 to 20"),
        (asking(max_completion_tokens=21), 400, "max_completion_tokens", "from 1 to 20"),
        (asking(stop=["a"] * 5), 400, "stop", "at most 4 strings"),
        (asking(stream="yes"), 400, "stream", "true or false"),
        (asking(stream_options={}, stream=False) | {"stream_options": {"include_usage": True}}, 400, "stream_options",
         "beside stream"),
        (asking("tower " * 60), 400, "messages", "the positions of the model"),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_and_which_parameter(client, body, status, param, words):
    raw = body if isinstance(body, str) else json.dumps(body)
    response = client.post(CHAT, content=raw)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]


def test_an_answer_without_a_limit_has_what_fits(client, guard):
    room = guard.model.longest - 44
    found = client.post(CHAT, json=asking("tower " * 43)).json()
    assert found["usage"]["prompt_tokens"] == 44
    assert found["usage"]["completion_tokens"] <= room


def test_models_metrics_and_paths_that_are_not_there(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], client.get("/v1/models/assistant").json()) == ("assistant", model)
    assert client.get("/v1/models/x").json()["error"]["code"] == "model_not_found"
    assert client.post("/v1/embeddings", json={}).json()["error"]["type"] == "invalid_request_error"
    assert client.get("/v2/health/ready").status_code == 200
    client.post(CHAT, json=asking(max_tokens=2))
    text = client.get("/metrics").text
    assert 'covary_requests_total{status="200"}' in text
    assert "covary_answer_tokens_total" in text
    assert 'covary_answers_total{finish="length"}' in text
    assert "covary_requests_open 0.0" in text


def test_keys_limits_hidden_verdicts_and_the_audit_log(of_texts, guard, tmp_path, monkeypatch):
    log = tmp_path / "audit.jsonl"
    settings = ServeSettings(name="assistant", api_key=KEY, verdicts="hidden", audit=log, max_bytes=400)
    monkeypatch.setattr(guard, "policy", "mark")
    with TestClient(make_app(of_texts, settings, guard), base_url="http://localhost") as client:
        refused = client.post(CHAT, json=asking())
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        key = {"authorization": f"Bearer {KEY}"}
        found = client.post(CHAT, json=asking(max_tokens=3), headers=key)
        assert "covary" not in found.json()
        assert not [name for name in found.headers if name.startswith("x-covary")]
        assert client.post(CHAT, json=asking("wolf " * 200), headers=key).status_code == 413
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [one["event"] for one in events] == ["started", "refused", "accepted", "answered", "refused", "stopped"]
    answered = events[3]
    assert answered["request"] == found.json()["id"]
    assert {"p_value", "score", "flagged", "finish", "prompt_sha256"} <= set(answered)


def test_an_audit_log_that_fails_gives_no_answer(of_texts, guard, monkeypatch):
    monkeypatch.setattr(guard, "policy", "mark")
    with TestClient(make_app(of_texts, ServeSettings(name="assistant"), guard), base_url="http://localhost") as client:
        service = service_of(client)
        monkeypatch.setattr(service, "audit", lambda event, **facts: event != "answered")
        service.audit.problem, service.audit.lost, service.audit.close = "full", 0, lambda: None
        assert client.post(CHAT, json=asking(max_tokens=2)).status_code == 503
        events = client.post(CHAT, json=asking(max_tokens=2, stream=True)).text
        assert '"type":"overloaded_error"' in events
        assert "[DONE]" not in events


def test_the_openai_client_talks_to_a_real_server(tmp_path):
    """A process of its own: the command line, a socket, chunks as they come."""
    model, place = texts.saved(tmp_path / "model"), tmp_path / "detector"
    Detector(model, max_new_tokens=4, judge="answer", fpr=0.1).fit(texts.records(44)).save(place)
    command = [sys.executable, "-m", "covary", "serve", str(place), "--name", "assistant", "--port", "0",
               "--policy", "mark", "--keep", str(tmp_path / "guard"), "--json"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = "".join(iter(process.stdout.readline, "}\n")) + "}"
        with openai.OpenAI(base_url=f"{json.loads(told)['address']}/v1", api_key="none", max_retries=0) as client:
            asked = {"model": "assistant", "messages": [{"role": "user", "content": CLEAN}], "max_tokens": 4}
            assert [model.id for model in client.models.list()] == ["assistant"]
            raw = client.chat.completions.with_raw_response.create(**asked)
            whole = raw.parse()
            assert raw.headers["x-covary-verdict"] in ("passed", "flagged")
            assert 0 < whole.model_extra["covary"]["p_value"] <= 1
            stream = list(client.chat.completions.create(**asked, stream=True))
            text = "".join(piece.choices[0].delta.content or "" for piece in stream)
            assert text == whole.choices[0].message.content
            assert stream[-1].model_extra["covary"] == whole.model_extra["covary"]
            # One that goes away in the middle leaves the place to the next.
            client.chat.completions.create(**asked, stream=True).close()
            with pytest.raises(openai.BadRequestError, match="leave n away") as caught:
                client.chat.completions.create(**asked, n=2)
            assert caught.value.param == "n"
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(**asked | {"model": "other"})
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()
