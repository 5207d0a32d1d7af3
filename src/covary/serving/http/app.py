"""The application: routes of the Open Inference Protocol, metrics and the live page, and who gets in."""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from covary import __version__
from covary.detector import Detector
from covary.errors import CovaryError, missing_extra
from covary.serving.http import protocol
from covary.serving.http.live import POLICY, live_page
from covary.serving.http.refusals import Refused
from covary.serving.http.service import Service
from covary.serving.http.settings import LOOPBACK, ServeSettings

# Annotations are evaluated here, not postponed: FastAPI reads them, and the names of an extra are local.
log = logging.getLogger("covary")
# Of a body that is too large, this many times the limit are read and thrown away, so that clients read the answer.
PATIENCE = 4
SAFE = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
PARSED_HERE = 2**15


def make_app(detector: Detector, settings: ServeSettings | None = None) -> Any:
    """A FastAPI application that serves a fitted detector; its `Service` is at `app.state.service`."""
    try:
        from fastapi import FastAPI, Request, Response
        from fastapi.responses import HTMLResponse, JSONResponse
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "fastapi", "serve") from error
    settings = settings or ServeSettings()
    service = Service(detector, settings)
    key = None if settings.api_key is None else hashlib.sha256(settings.api_key.encode()).digest()
    open_requests = 0

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        service.batcher.start()
        service.audit("started", model=settings.name, version=__version__, network=detector.network.fingerprint)
        yield
        await service.batcher.close()
        service.audit("stopped", inputs=service.monitor.counts.seen)
        service.audit.close()

    app = FastAPI(title="covary", openapi_url=None, lifespan=lifespan)
    app.state.service = service

    def authorise(request: Request) -> None:
        host = (request.headers.get("host") or "").rpartition("]")[-1].partition(":")[0] or "::1"
        # A page in somebody's browser may point its own name at this machine.
        if settings.loopback and host not in (*LOOPBACK, settings.host):
            raise Refused(400, f"the host name {host[:60]!r}", "localhost")
        if key is not None:
            kind, _, token = request.headers.get("authorization", "").partition(" ")
            given = token if kind.lower() == "bearer" else request.headers.get("x-api-key", "")
            # Hashes are of one length, so the comparison takes the same time whatever was sent.
            if not hmac.compare_digest(hashlib.sha256(given.encode("utf-8", "replace")).digest(), key):
                raise Refused(401, "no valid API key", "Authorization: Bearer KEY")

    def known_model(name: str, version: str = "1") -> None:
        if name != settings.name or version != "1":
            raise Refused(404, f"no model {name[:60]!r} of version {version[:20]!r}", f"{settings.name!r}, version 1")

    async def body_of(request: Request) -> bytes:
        announced = request.headers.get("content-length", "0")
        size = int(announced[:18]) if announced.isascii() and announced.isdigit() else 0
        parts, got = [], 0
        async for part in request.stream():
            got += len(part)
            if got <= settings.max_bytes:
                parts.append(part)
            elif got > PATIENCE * settings.max_bytes:
                break
        if max(size, got) > settings.max_bytes:
            raise Refused(413, f"a body of {max(size, got)} bytes", f"at most {settings.max_bytes}")
        return b"".join(parts)

    async def infer(request: Request, name: str, version: str) -> Response:
        nonlocal open_requests
        authorise(request)
        known_model(name, version)
        if open_requests >= settings.max_requests:
            most = f"at most {settings.max_requests}"
            raise Refused(429, f"{open_requests} requests are open", most, "try again soon")
        if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
            raise Refused(415, f"a body in encoding {encoding[:20]!r}", "none")
        open_requests += 1
        service.metrics.open(open_requests)
        try:
            try:
                body = await asyncio.wait_for(body_of(request), settings.read_seconds)
            except asyncio.TimeoutError:
                raise Refused(408, f"a body that took over {settings.read_seconds:g} s to arrive") from None
            arguments = body, request.headers.get("inference-header-content-length"), protocol.OUTPUTS
            if len(body) > PARSED_HERE:
                asked = await asyncio.get_running_loop().run_in_executor(None, protocol.parse, *arguments)
            else:
                asked = protocol.parse(*arguments)
            request.state.asked = asked.id
            found = await service.infer(asked.id, asked.x, protocol.EVIDENCE in (asked.outputs or ()))
            request.state.audit = found.pop("audit")
            stream = service.monitor.stream
            parameters = {"false_alarm_rate": service.monitor.judge.fpr_in_force, "stream_alarm": stream.alarmed}
            content, headers = protocol.answer(asked, settings.name, found, parameters)
            return Response(content, headers=headers)
        finally:
            open_requests -= 1
            service.metrics.open(open_requests)

    async def answer(request: Request, name: str, version: str = "1") -> Response:
        begin = time.perf_counter()
        problem: str | None = None
        try:
            response = await infer(request, name, version)
        except CovaryError as refused:
            problem = str(refused)
            response = told(getattr(refused, "status", 400), problem)
        except ClientDisconnect:
            problem = "the client went away"
            response = told(400, problem)
        except Exception:
            log.exception("a request failed")
            problem = "the service failed; its log says why"
            response = told(500, problem)
        seconds = time.perf_counter() - begin
        service.metrics.answered(response.status_code, seconds)
        facts: dict[str, Any] = {"request": getattr(request.state, "asked", None), "status": response.status_code}
        facts |= {"client": request.client.host if request.client else None, "seconds": round(seconds, 5)}
        if problem is None:
            service.recent.answered(seconds)
            service.audit("answered", **facts, inputs=request.state.audit)
        else:
            service.audit("refused", **facts, problem=problem)
        return response

    def told(status: int, sentence: str) -> Response:
        headers = {**SAFE, **({"retry-after": "1"} if status == 429 else {})}
        headers |= {"www-authenticate": "Bearer"} if status == 401 else {}
        # What was only half read leaves the connection in no state for another request.
        headers |= {"connection": "close"} if status in (408, 413) else {}
        return JSONResponse({"error": sentence}, status, headers)

    app.add_api_route("/v2/models/{name}/infer", answer, methods=["POST"])
    app.add_api_route("/v2/models/{name}/versions/{version}/infer", answer, methods=["POST"])

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, problem: HTTPException) -> Response:
        return told(problem.status_code, f"{request.method} {request.url.path[:80]}: {problem.detail}")

    @app.exception_handler(CovaryError)
    async def refused(_: Request, problem: CovaryError) -> Response:
        return told(getattr(problem, "status", 400), str(problem))

    @app.get("/v2/health/live")
    @app.get("/v2/health/ready")
    async def healthy() -> Response:
        return Response(status_code=200, headers=SAFE)

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    async def ready(request: Request, name: str, version: str = "1") -> Response:
        authorise(request)
        known_model(name, version)
        return Response(status_code=200, headers=SAFE)

    @app.get("/v2")
    async def server(request: Request) -> Any:
        authorise(request)
        return {"name": "covary", "version": __version__, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    async def model(request: Request, name: str, version: str = "1") -> Any:
        authorise(request)
        known_model(name, version)
        return protocol.model_metadata(settings.name, detector.input_shape, detector.classes)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        authorise(request)
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    @app.get("/live.json")
    async def live(request: Request) -> Response:
        authorise(request)
        return JSONResponse(service.live(), headers=SAFE)

    @app.get("/")
    async def page(request: Request) -> Response:
        # Without data, so open: the page asks for the key itself.
        return HTMLResponse(live_page(), headers={**SAFE, "content-security-policy": POLICY})

    return app
