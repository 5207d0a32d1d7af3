"""The application of a language model: chat completions, models, health and metrics."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from covary.detector import Detector
from covary.errors import CovaryError, missing_extra
from covary.serving.guard import Guard
from covary.serving.http.access import Access
from covary.serving.http.base import GETS, SAFE, Answers, Places, base_app
from covary.serving.http.chat import shapes
from covary.serving.http.chat.requests import about, parse
from covary.serving.http.chat.service import Answer, ChatService
from covary.serving.http.refusals import Refused
from covary.serving.http.settings import ServeSettings
from covary.serving.http.transport.bodies import Bodies

# Annotations are evaluated here, not postponed: FastAPI reads them, and the names of an extra are local.
log = logging.getLogger("covary")


def make_chat_app(detector: Detector, settings: ServeSettings, guard: Guard | None = None) -> Any:
    """A FastAPI application that answers as OpenAI's chat completions do, every answer under guard.

    Args:
        detector: fitted on texts with answers; of a causal model.
        settings: see `ServeSettings`.
        guard: of that detector; None learns one with its defaults.
    """
    try:
        from fastapi import Request, Response
        from starlette.requests import ClientDisconnect
        from starlette.responses import StreamingResponse
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "fastapi", "serve") from error
    service = ChatService(guard or Guard(detector), settings)
    access, bodies, answers = Access(settings), Bodies(settings), Answers(shapes.error)
    places, began = Places(settings.max_requests, service.metrics.open), int(time.time())
    app = base_app(service, settings, access, answers, detector.network.fingerprint)

    async def body_of(request: Request) -> bytes:
        access.check_client(request.headers.raw)
        places.check()
        if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
            raise Refused(415, f"a body in encoding {encoding[:20]!r}", "none")
        return await bodies.read(request)

    async def whole(request: Request, answer: Answer) -> Response:
        piece, texts = await answer.speaking.next(), []
        while piece.finish is None:
            texts.append(piece.text)
            if await request.is_disconnected():
                raise ClientDisconnect
            piece = await answer.speaking.next()
        texts.append(piece.text)
        service.finished(answer, piece)
        content = shapes.completion(answer.head, "".join(texts), str(piece.finish), answer.usage)
        return answers.json({**content, **answer.covary(piece)}, headers=answer.headers(piece))

    async def streamed(answer: Answer, usage: bool) -> Response:
        # The verdict on the prompt is known before anything is sent, and stands in the headers.
        first = await answer.speaking.next()

        async def events() -> AsyncIterator[bytes]:
            piece = first
            try:
                yield _event(shapes.chunk(answer.head, {"role": "assistant", "content": ""}) | answer.covary(first))
                while piece.finish is None:
                    piece = await answer.speaking.next()
                    told = answer.covary(piece) if piece.finish is None else {}
                    if piece.finish is None and (piece.text or told):
                        yield _event(shapes.chunk(answer.head, {"content": piece.text}) | told)
                service.finished(answer, piece)
                if piece.text:
                    yield _event(shapes.chunk(answer.head, {"content": piece.text}))
                yield _event(shapes.chunk(answer.head, {}, piece.finish) | answer.covary(piece))
                if usage:
                    yield _event(shapes.usage_chunk(answer.head, answer.usage))
                yield b"data: [DONE]\n\n"
            except Exception as problem:
                status, sentence = _told(problem)
                yield _event(shapes.error(status, sentence, problem if isinstance(problem, CovaryError) else None))
            finally:
                answer.speaking.leave()
                places.leave()

        headers = {**SAFE, **answer.headers(first), "x-accel-buffering": "no"}
        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    async def respond(request: Request) -> Response:
        body = await body_of(request)
        parsed = await asyncio.get_running_loop().run_in_executor(None, parse, body, settings.max_new_tokens)
        # Only whole requests take a place, so that slow ones keep none from the others.
        places.take()
        answer, kept = None, False
        try:
            answer = service.ask(parsed)
            if not parsed.stream:
                return await whole(request, answer)
            response = await streamed(answer, parsed.usage)
            kept = True
            return response
        finally:
            if not kept:
                if answer is not None:
                    answer.speaking.leave()
                places.leave()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        begin, client = time.perf_counter(), request.client.host if request.client else None
        try:
            response = await respond(request)
        except Exception as problem:
            left = isinstance(problem, ClientDisconnect)
            status, sentence = (400, "the client went away") if left else _told(problem)
            known = problem if isinstance(problem, CovaryError) else None
            response = answers.refusal(status, sentence, problem=known)
            service.audit("refused", client=client, status=status, problem=sentence)
        service.metrics.answered(response.status_code, time.perf_counter() - begin)
        return response

    @app.api_route("/v1/models", methods=GETS)
    async def models(request: Request) -> Response:
        access.check_client(request.headers.raw)
        return answers.json({"object": "list", "data": [shapes.model(settings.name, began)]})

    @app.api_route("/v1/models/{name}", methods=GETS)
    async def model(request: Request, name: str) -> Response:
        access.check_client(request.headers.raw)
        if name != settings.name:
            raise about("model", Refused(404, f"no model {name[:60]!r}", repr(settings.name)), "model_not_found")
        return answers.json(shapes.model(settings.name, began))

    return app


def _told(problem: Exception) -> tuple[int, str]:
    """Status and sentence of what went wrong."""
    if isinstance(problem, CovaryError):
        return getattr(problem, "status", 400), str(problem)
    log.error("a request failed", exc_info=problem)
    return 500, "the service failed; its log says why"


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"
