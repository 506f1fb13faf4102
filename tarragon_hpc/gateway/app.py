"""The routes of the gateway."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

import tarragon_hpc
from tarragon_hpc.errors import TarragonError
from tarragon_hpc.gateway.answer import HEADER as IDEMPOTENCY
from tarragon_hpc.gateway.answer import read_key
from tarragon_hpc.gateway.body import read_json_body
from tarragon_hpc.gateway.chat import open_chat
from tarragon_hpc.gateway.completions import open_completion
from tarragon_hpc.gateway.errors import CLIENT_GONE, explain, http_error
from tarragon_hpc.gateway.fields import read_request
from tarragon_hpc.gateway.front import FrontDoor, KeyRing
from tarragon_hpc.gateway.generation import Service
from tarragon_hpc.gateway.keeper import Keeper, Origin
from tarragon_hpc.gateway.metrics import GatewayMetrics
from tarragon_hpc.gateway.replay import read_position
from tarragon_hpc.gateway.request_log import RequestLog
from tarragon_hpc.gateway.sampling import Limits, SamplingDefaults
from tarragon_hpc.gateway.schema import ChatRequest, CompletionRequest, GenerationRequest
from tarragon_hpc.gateway.stream import (
    EventStream,
    JsonResponse,
    error_response,
    events,
    until_disconnect,
)
from tarragon_hpc.gateway.template import ChatTemplate
from tarragon_hpc.gateway.text import TextCodec

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from prometheus_client import CollectorRegistry

    from tarragon_hpc.config import Config
    from tarragon_hpc.gateway.answer import Answer
    from tarragon_hpc.gateway.formats import Format
    from tarragon_hpc.gateway.generation import Generation
    from tarragon_hpc.gateway.records import Kind
    from tarragon_hpc.gateway.sessions import Sessions
    from tarragon_hpc.models.spec import ModelSpec

R = TypeVar("R", bound=GenerationRequest)


def create_app(
    *,
    sessions: Sessions,
    spec: ModelSpec,
    config: Config,
    status: Callable[[], dict[str, Any]],
    registry: CollectorRegistry,
    notes: RequestLog | None = None,
) -> FastAPI:
    """The gateway's ASGI app. All of it runs in the sessions' event loop.

    status: what GET /status answers, in JSON types. registry: what GET /metrics answers; the
    gateway's own metrics are added to it. notes: the sessions' notebook; the app's `state.keeper`
    begins it in a run directory, and takes over what earlier heads have left there. Raises
    ModelError if the checkpoint's tokenizer, chat template or generation config is broken; that it
    has none is no error.
    """
    service = _service(sessions, spec, config, GatewayMetrics(registry, sessions.stats))
    app = FastAPI(title="tarragon", docs_url=None, redoc_url=None, openapi_url=None)
    keys = KeyRing(config.gateway.api_keys)
    limit, keep_s = config.gateway.max_requests, config.gateway.resume_s
    keeper = app.state.keeper = Keeper(service, notes or RequestLog(), limit, keep_s)
    app.add_middleware(FrontDoor, keys=keys, metrics=service.metrics)
    app.add_exception_handler(TarragonError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    max_body = config.gateway.max_body
    model = {
        "id": service.names[0],
        "object": "model",
        "created": int(time.time()),
        "owned_by": "tarragon",
        "root": spec.path,
        "parent": None,
        "max_model_len": service.limits.max_len,
    }

    def holder(raw: Request) -> bytes:
        return keys.holder(raw.headers.get("authorization"))

    async def answer(
        raw: Request,
        kind: Kind,
        model: type[R],
        admit: Callable[..., Coroutine[Any, Any, tuple[Generation, Format]]],
    ) -> Response:
        body = await read_json_body(raw, max_body)
        request = read_request(model, body)
        key = None if request.stream else read_key(raw.headers.get(IDEMPOTENCY))
        origin = Origin(kind, body, holder(raw), raw.state.request_id, key)
        if key is not None and (known := keeper.asked(origin)) is not None:
            return await _once(raw, known)
        kept = request.resumable or key is not None
        generation, form = await admit(service, request, kept=kept)
        if request.resumable:
            return keeper.stream(generation, form, request, origin).stream(0)
        if key is not None:
            return await _once(raw, keeper.answer(generation, form, origin))
        return await _answer(raw, request, generation, form)

    @app.post("/v1/completions")
    async def completions(raw: Request) -> Response:
        return await answer(raw, "completions", CompletionRequest, open_completion)

    @app.post("/v1/chat/completions")
    async def chat_completions(raw: Request) -> Response:
        return await answer(raw, "chat", ChatRequest, open_chat)

    @app.get("/v1/requests/{name:path}/stream")
    async def resume(raw: Request, name: str) -> Response:
        replay = keeper.find(name, holder(raw))
        known = read_position(raw.query_params, raw.headers.get("last-event-id"))
        response = replay.stream(known)
        service.metrics.streams_resumed.inc()
        return response

    @app.get("/v1/models")
    async def models() -> Response:
        return JsonResponse({"object": "list", "data": [model]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        service.check_model(name)
        return JsonResponse(model)

    @app.get("/health")
    async def health() -> Response:
        why = sessions.unavailable()
        body = {"status": "serving" if why is None else "unavailable", "reason": why}
        return JsonResponse(body, 200 if why is None else 503)

    @app.get("/status")
    async def show_status() -> Response:
        return JsonResponse(status())

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    @app.get("/version")
    async def version() -> Response:
        return JsonResponse({"version": tarragon_hpc.__version__})

    return app


def _service(
    sessions: Sessions, spec: ModelSpec, config: Config, metrics: GatewayMetrics
) -> Service:
    root = Path(spec.path)
    served = config.model.served_name or root.resolve().name
    return Service(
        sessions=sessions,
        codec=TextCodec.load(root),
        template=ChatTemplate.load(root),
        defaults=SamplingDefaults.load(root),
        limits=Limits(vocab=spec.vocab, max_len=config.model.max_model_len or spec.max_len),
        # Clients of vLLM name a model by its path.
        names=tuple(dict.fromkeys((served, config.model.path, spec.path))),
        metrics=metrics,
    )


async def _answer(
    raw: Request, request: GenerationRequest, generation: Generation, form: Format
) -> Response:
    if request.stream:
        source = events(generation, form, request.stream_options)
        return EventStream(generation.id, generation, source)
    with generation:
        pieces = await until_disconnect(raw.receive, generation.collect())
    if pieces is None:
        return Response(status_code=CLIENT_GONE)
    return JsonResponse(form.response(pieces))


async def _once(raw: Request, answer: Answer) -> Response:
    value = await until_disconnect(raw.receive, answer.get())
    return Response(status_code=CLIENT_GONE) if value is None else JsonResponse(value)


async def _on_error(_: Request, error: Exception) -> Response:
    return error_response(explain(error))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail.lower()}"
    return error_response(http_error(error.status_code, message, headers=dict(error.headers or {})))
