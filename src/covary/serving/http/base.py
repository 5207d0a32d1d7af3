"""What every application has: who gets in, refusals, health, metrics, a beginning and an end."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from covary import __version__
from covary.errors import CovaryError, missing_extra
from covary.serving.http.access import Access, Guard
from covary.serving.http.settings import ServeSettings

# Annotations are evaluated here, not postponed: FastAPI reads them, and the names of an extra are local.
SAFE = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
GETS = ["GET", "HEAD"]
# From status, sentence and what is known beside them to the JSON of a refusal.
Shape = Callable[[int, str, CovaryError | None], dict[str, Any]]


def plain_shape(status: int, sentence: str, problem: CovaryError | None = None) -> dict[str, Any]:
    """One sentence under `error`."""
    return {"error": sentence}


class Answers:
    """JSON answers and refusals of one shape.

    Args:
        shape: of refusals.
    """

    def __init__(self, shape: Shape = plain_shape) -> None:
        self._shape = shape

    def json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Any:
        """A Starlette response."""
        from starlette.responses import Response

        # ASCII, so that no text of a client is one that cannot be written.
        text = json.dumps(content, separators=(",", ":"), allow_nan=False)
        return Response(text, status, {**SAFE, **(headers or {})}, "application/json")

    def refusal(
        self, status: int, sentence: str, more: dict[str, str] | None = None, problem: CovaryError | None = None
    ) -> Any:
        """A refusal in one sentence, with the headers that go with its status."""
        headers = {"retry-after": "1"} if status in (429, 503) else {}
        headers |= {"www-authenticate": "Bearer"} if status == 401 else {}
        # What was only half read leaves the connection in no state for another request.
        headers |= {"connection": "close"} if status in (408, 413) else {}
        return self.json(self._shape(status, sentence, problem), status, {**headers, **(more or {})})


def base_app(service: Any, settings: ServeSettings, access: Access, answers: Answers, network: str) -> Any:
    """A FastAPI application with health and metrics, whose service begins and ends with it.

    Args:
        service: a `Recording` with `start`, `close` and `seen`.
        network: fingerprint of the network, for the audit log.
    """
    try:
        from fastapi import FastAPI, Request, Response
        from starlette.exceptions import HTTPException
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "fastapi", "serve") from error

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        service.start()
        service.audit("started", model=settings.name, version=__version__, network=network)
        yield
        await service.close()
        service.audit("stopped", inputs=service.seen)
        service.audit.close()

    app = FastAPI(title="covary", openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    app.add_middleware(Guard, access=access, refuse=answers.refusal)
    app.state.service = service

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, problem: HTTPException) -> Response:
        sentence = f"{request.method[:20]} {request.scope['path'][:80]}: {problem.detail}"
        return answers.refusal(problem.status_code, sentence, dict(problem.headers or {}))

    @app.exception_handler(CovaryError)
    async def refused(_: Request, problem: CovaryError) -> Response:
        return answers.refusal(getattr(problem, "status", 400), str(problem), problem=problem)

    @app.exception_handler(Exception)
    async def failed(_: Request, problem: Exception) -> Response:
        return answers.refusal(500, "the service failed; its log says why")

    @app.api_route("/v2/health/live", methods=GETS)
    async def healthy() -> Response:
        return Response(status_code=200, headers=SAFE)

    @app.api_route("/v2/health/ready", methods=GETS)
    async def server_ready() -> Response:
        warning = service.ready()
        return Response(status_code=200, headers=SAFE) if warning is None else answers.json({"warning": warning})

    @app.api_route("/metrics", methods=GETS)
    async def metrics(request: Request) -> Response:
        access.check_operator(request.headers.raw)
        if (room := getattr(app.state, "room", None)) is not None:
            service.metrics.connected(room.count)
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    return app


class Places:
    """Requests that are at work at a time; more are refused.

    Args:
        most: of them.
        told: called with their number whenever it changes.
    """

    def __init__(self, most: int, told: Callable[[int], None]) -> None:
        self._most, self._told, self.taken = most, told, 0

    def check(self) -> None:
        """Refuses where none is free.

        Raises:
            Refused: 429.
        """
        from covary.serving.http.refusals import Refused

        if self.taken >= self._most:
            raise Refused(429, f"{self.taken} requests are open", f"at most {self._most}", "try again soon")

    def take(self) -> None:
        """Takes one, if it is free."""
        self.check()
        self.taken += 1
        self._told(self.taken)

    def leave(self) -> None:
        """Gives it back."""
        self.taken -= 1
        self._told(self.taken)
