"""The application: routes of the Open Inference Protocol, metrics and the live page; or those of a language model."""

import asyncio
import json
import logging
import time
from typing import Any

from covary import __version__
from covary.detector import Detector
from covary.errors import CovaryError, missing_extra
from covary.serving.guard import Guard as TextGuard
from covary.serving.http import protocol
from covary.serving.http.access import Access
from covary.serving.http.base import GETS, SAFE, Answers, Places, base_app
from covary.serving.http.chat.app import make_chat_app
from covary.serving.http.live.page import POLICY, live_page
from covary.serving.http.refusals import Refused
from covary.serving.http.service import Service
from covary.serving.http.settings import ServeSettings
from covary.serving.http.transport.bodies import Bodies

# Annotations are evaluated here, not postponed: FastAPI reads them, and the names of an extra are local.
log = logging.getLogger("covary")
PARSED_HERE = 2**15
LONGEST_REMARK = 500


def make_app(detector: Detector, settings: ServeSettings | None = None, guard: TextGuard | None = None) -> Any:
    """A FastAPI application that serves a fitted detector; its `Service` is at `app.state.service`.

    A detector of a language model's answers speaks as OpenAI's chat completions do, by its `guard` or a new one (see
    `make_chat_app`).
    """
    try:
        from fastapi import Request, Response
        from fastapi.responses import HTMLResponse
        from starlette.requests import ClientDisconnect
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "fastapi", "serve") from error
    settings = settings or ServeSettings()
    if detector.settings.kind == "text":
        return make_chat_app(detector, settings, guard)
    service, access, bodies, answers = Service(detector, settings), Access(settings), Bodies(settings), Answers()
    places = Places(settings.max_requests, service.metrics.open)
    as_json, refusal = answers.json, answers.refusal
    app = base_app(service, settings, access, answers, detector.network.fingerprint)

    def known_model(name: str, version: str = "1") -> None:
        if name != settings.name or version != "1":
            raise Refused(404, f"no model {name[:60]!r} of version {version[:20]!r}", f"{settings.name!r}, version 1")

    async def infer(request: Request, name: str, version: str) -> Response:
        access.check_client(request.headers.raw)
        known_model(name, version)
        places.check()
        if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
            raise Refused(415, f"a body in encoding {encoding[:20]!r}", "none")
        body = await bodies.read(request)
        # Only whole requests take a place, so that slow ones keep none from the others.
        places.take()
        try:
            arguments = body, request.headers.get("inference-header-content-length"), service.known
            if len(body) > PARSED_HERE:
                parsed = await asyncio.get_running_loop().run_in_executor(None, protocol.parse, *arguments)
            else:
                parsed = protocol.parse(*arguments)
            request.state.request_id = parsed.id
            found = await service.infer(parsed.id, parsed.x, protocol.EVIDENCE in (parsed.outputs or ()))
            request.state.audit = found.pop("audit")
            parameters: dict[str, Any] = {}
            if service.verdicts_visible:
                alarmed = service.monitor.stream.alarmed
                parameters = {"false_alarm_rate": service.monitor.judge.fpr_in_force, "stream_alarm": alarmed}
            found = {name: values for name, values in found.items() if name in service.known}
            content, headers = protocol.answer(parsed, settings.name, found, parameters)
            return Response(content, headers=headers)
        finally:
            places.leave()

    async def answer(request: Request, name: str, version: str = "1") -> Response:
        begin = time.perf_counter()
        problem: str | None = None
        try:
            response = await infer(request, name, version)
        except CovaryError as refused:
            problem = str(refused)
            response = refusal(getattr(refused, "status", 400), problem)
        except ClientDisconnect:
            problem = "the client went away"
            response = refusal(400, problem)
        except Exception:
            log.exception("a request failed")
            problem = "the service failed; its log says why"
            response = refusal(500, problem)
        seconds = time.perf_counter() - begin
        facts: dict[str, Any] = {"request": getattr(request.state, "request_id", None), "status": response.status_code}
        facts |= {"client": request.client.host if request.client else None, "seconds": round(seconds, 5)}
        try:
            if problem is None:
                service.write_down("answered", **facts, inputs=request.state.audit)
                service.recent.answered(seconds)
            else:
                service.audit("refused", **facts, problem=problem)
        except Refused as unwritten:
            # A verdict that the log does not hold is not given.
            response = refusal(unwritten.status, str(unwritten))
        service.metrics.answered(response.status_code, seconds)
        return response

    app.add_api_route("/v2/models/{name}/infer", answer, methods=["POST"])
    app.add_api_route("/v2/models/{name}/versions/{version}/infer", answer, methods=["POST"])

    @app.api_route("/v2/models/{name}/ready", methods=GETS)
    @app.api_route("/v2/models/{name}/versions/{version}/ready", methods=GETS)
    async def ready(request: Request, name: str, version: str = "1") -> Response:
        access.check_client(request.headers.raw)
        known_model(name, version)
        warning = service.ready()
        return Response(status_code=200, headers=SAFE) if warning is None else as_json({"warning": warning})

    @app.api_route("/v2", methods=GETS)
    async def server(request: Request) -> Response:
        access.check_client(request.headers.raw)
        return as_json({"name": "covary", "version": __version__, "extensions": ["binary_tensor_data"]})

    @app.api_route("/v2/models/{name}", methods=GETS)
    @app.api_route("/v2/models/{name}/versions/{version}", methods=GETS)
    async def model(request: Request, name: str, version: str = "1") -> Response:
        access.check_client(request.headers.raw)
        known_model(name, version)
        return as_json(protocol.model_metadata(settings.name, detector.input_shape, detector.classes, service.known))

    @app.post("/v2/models/{name}/acknowledge")
    @app.post("/v2/models/{name}/versions/{version}/acknowledge")
    async def acknowledge(request: Request, name: str, version: str = "1") -> Response:
        if not access.has_operator:
            remedy = "start the service with operator_key_file= or api_key_file="
            raise Refused(403, "acknowledging the stream alarm asks for a key, and the service has none", "", remedy)
        access.check_operator(request.headers.raw)
        known_model(name, version)
        remark = _remark(await bodies.read(request))
        client = request.client.host if request.client else None
        return as_json({"acknowledged": await service.acknowledge(client=client, **remark)})

    @app.api_route("/live.json", methods=GETS)
    async def live(request: Request) -> Response:
        access.check_operator(request.headers.raw)
        return as_json(service.live())

    @app.api_route("/", methods=GETS)
    async def page(request: Request) -> Response:
        # Without data, so open: the page asks for the key itself.
        return HTMLResponse(live_page(), headers={**SAFE, "content-security-policy": POLICY})

    return app


def _remark(body: bytes) -> dict[str, str]:
    """What an operator says with an acknowledgement: nothing, or who it is and why."""
    if not body.strip():
        return {}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    known = isinstance(found, dict) and set(found) <= {"by", "reason"}
    remark: dict[str, Any] = found if known else {"": None}  # type: ignore[assignment]
    if all(isinstance(text, str) and len(text) <= LONGEST_REMARK for text in remark.values()):
        return remark
    raise Refused(400, "the body says something else", 'nothing, or {"by": "...", "reason": "..."}')
