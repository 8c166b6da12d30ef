"""The gateway's application: its routes, and what each of them does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ring.gateway.answer import Answer, Desk
from ring.gateway.body import decode, read
from ring.gateway.chat import ChatForm, ChatRequest
from ring.gateway.completions import CompletionForm, CompletionRequest
from ring.gateway.errors import ErrorBody, ErrorDetail, GatewayError, default_type
from ring.gateway.front import Front
from ring.gateway.generate import GenerateForm, GenerateRequest
from ring.gateway.metrics import Metrics
from ring.gateway.openapi import Health, Model, ModelList, describe
from ring.gateway.page import page
from ring.gateway.upstream import Upstream
from ring.gateway.write import encoder

Body = TypeVar("Body", GenerateRequest, CompletionRequest, ChatRequest)

METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one gateway takes on: a body's bytes, a generation's tokens, generations at once, seconds for a request and
    for its body to arrive."""

    max_body: int = 4 << 20
    max_tokens: int = 4096
    max_requests: int = 256
    time_limit_s: float = 600.0
    body_patience_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use it: digests of keys (see `read_keys`), whether only by a loopback name, and from pages of which origins."""

    keys: list[bytes] = field(default_factory=list)
    local_only: bool = True
    origins: Sequence[str] = ()


class Gateway:
    """Everything behind the routes.

    Args:
        head: the head's address.
        limits: see `Limits`.
        access: see `Access`.
        keys: the folder of this machine's keys for the ring.
        insecure: talk to a head on another machine without keys.
    """

    def __init__(self, head: str, limits: Limits, access: Access, keys: Path | None = None, insecure: bool = False) -> None:
        self.limits = limits
        self.access = access
        self.metrics = Metrics()
        self.upstream = Upstream(head, self.metrics.laps.add, keys, insecure)
        self.desk = Desk(self.upstream, limits.max_requests, limits.time_limit_s)
        self._generate = msgspec.json.Decoder(GenerateRequest)
        self._completions = msgspec.json.Decoder(CompletionRequest)
        self._chat = msgspec.json.Decoder(ChatRequest)
        self._description = encoder.encode(describe())

    def app(self) -> Starlette:
        """The ASGI application. Its lifespan keeps the connection to the head."""
        routes = [
            Route("/generate", self.generate, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.show_metrics),
            Route("/openapi.json", self.openapi),
            Route("/docs", self.docs),
        ]
        paths = frozenset(route.path for route in routes)
        access = self.access
        middleware = [Middleware(Front, self.metrics, access.keys, access.local_only, paths)]
        if access.origins:
            cors = Middleware(CORSMiddleware, allow_origins=access.origins, allow_methods=["GET", "POST"], allow_headers=["*"])
            middleware.insert(0, cors)
        return Starlette(
            routes=routes,
            middleware=middleware,
            exception_handlers={
                GatewayError: tell,
                HTTPException: tell_http,
                ClientDisconnect: tell_nobody,
                Exception: tell_bug,
            },
            lifespan=self.lifespan,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Stay connected to the head."""
        connection = asyncio.create_task(self.upstream.run())
        try:
            yield
        finally:
            connection.cancel()
            await asyncio.gather(connection, return_exceptions=True)

    # ---- generating ----

    async def generate(self, request: Request) -> Response:
        """`POST /generate`."""
        body = await self._read(request, self._generate)
        asks = [body.ask(self.limits.max_tokens)]
        return Answer(self.desk, asks, GenerateForm(body), body.stream)

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        body = await self._read(request, self._completions)
        asks = body.asks(self.limits.max_tokens)
        return Answer(self.desk, asks, CompletionForm(body, asks, self._model(body.model)), bool(body.stream))

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        body = await self._read(request, self._chat)
        asks = body.asks(self.limits.max_tokens)
        return Answer(self.desk, asks, ChatForm(body, asks, self._model(body.model)), bool(body.stream))

    async def _read(self, request: Request, decoder: msgspec.json.Decoder[Body]) -> Body:
        return decode(await read(request, self.limits.max_body, self.limits.body_patience_s), decoder)

    def _model(self, asked: str | None) -> str:
        """The model's name.

        Raises:
            GatewayError: 404 if another one was asked for, 503 while the head is not there.
        """
        status = self.upstream.status
        if status is None:
            raise GatewayError(503, self.upstream.problem, "no_head", headers={"Retry-After": "1"})
        if asked is not None and asked != status.model:
            why = f"this ring serves the model '{status.model}', not '{asked[:200]}'"
            raise GatewayError(404, why, "model_not_found", "model")
        return status.model

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`: the one that there is."""
        return answer(ModelList([Model(self._model(None))]))

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/{model}`."""
        return answer(Model(self._model(request.path_params["model"])))

    # ---- watching ----

    async def _health(self) -> Health:
        status = await self.upstream.refresh()
        if status is None:
            return Health("unavailable", "no_head", self.upstream.problem)
        return Health("ok" if status.state == "ready" else "unavailable", status.state, status.detail, status.model)

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200 only while tokens can flow."""
        health = await self._health()
        return answer(health, 200 if health.status == "ok" else 503)

    async def ready(self, request: Request) -> Response:
        """`GET /ready`: 200 only while this gateway would take on another request."""
        health = await self._health()
        if health.status == "ok" and (self.desk.draining or self.desk.running >= self.desk.max_requests):
            why = "the gateway is shutting down" if self.desk.draining else "as many generations are running as may"
            health = Health("unavailable", health.state, why, health.model)
        return answer(health, 200 if health.status == "ok" else 503)

    async def show_metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        return Response(self.metrics.render(await self.upstream.refresh()), media_type=METRICS_TYPE)

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        return Response(self._description, media_type="application/json")

    async def docs(self, request: Request) -> Response:
        """`GET /docs`: the description for people."""
        return HTMLResponse(page(describe()))


def answer(body: msgspec.Struct, status: int = 200) -> Response:
    """A struct as JSON."""
    return Response(encoder.encode(body), status, media_type="application/json")


async def tell(request: Request, error: Exception) -> Response:
    """A GatewayError in OpenAI's shape."""
    assert isinstance(error, GatewayError)
    return Response(encoder.encode(error.body), error.status, error.headers, "application/json")


async def tell_http(request: Request, error: Exception) -> Response:
    """An error of the router: no such path, or not that method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        why, code = f"there is no {request.url.path[:200]} here; see /docs", "not_found"
    else:
        why, code = f"{request.method[:20]} is not for {request.url.path[:200]}; see /docs", "method_not_allowed"
    body = ErrorBody(ErrorDetail(why, default_type(error.status_code), code=code))
    return Response(encoder.encode(body), error.status_code, error.headers, "application/json")


async def tell_nobody(request: Request, error: Exception) -> Response:
    """The client hung up while it was sending: the answer reaches nobody."""
    request.scope["ring.failed"] = "disconnected"
    return Response(status_code=400)


async def tell_bug(request: Request, error: Exception) -> Response:
    """What should not happen; the log has the traceback."""
    body = ErrorBody(ErrorDetail("the gateway has failed at this request; its log says how", "server_error", code="internal"))
    return Response(encoder.encode(body), 500, media_type="application/json")
