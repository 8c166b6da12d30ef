"""`GET /openapi.json`: made of the very structs that requests are decoded into and answers encoded from."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ring import __version__
from ring.gateway.chat import ChatChunk, ChatRequest, ChatResponse
from ring.gateway.completions import CompletionRequest, CompletionResponse
from ring.gateway.errors import ErrorBody
from ring.gateway.generate import GeneratePart, GenerateRequest, GenerateResponse
from ring.gateway.parameters import IGNORED, REFUSED


class Health(msgspec.Struct):
    """Whether tokens can flow; if not, `detail` says what is missing. `state` is the ring's own word, or `no_head`."""

    status: Literal["ok", "unavailable"]
    state: Literal["ready", "forming", "mismatch", "no_head"]
    detail: str
    model: str | None = None


class Model(msgspec.Struct):
    """The model that the ring serves."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["ring"] = "ring"


class ModelList(msgspec.Struct):
    """All models: there is one."""

    data: list[Model]
    object: Literal["list"] = "list"


JSON, EVENTS = "application/json", "text/event-stream"
SCHEMAS = [
    *(GenerateRequest, GenerateResponse, GeneratePart, CompletionRequest, CompletionResponse),
    *(ChatRequest, ChatResponse, ChatChunk, Health, Model, ModelList, ErrorBody),
]
PROMPTS = {
    "description": "A string, strings, token ids, or lists of token ids",
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "maxItems": 64, "items": {"type": "string"}},
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": 1 << 31}},
        {
            "type": "array",
            "minItems": 1,
            "maxItems": 64,
            "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": 1 << 31}},
        },
    ],
}


def describe() -> dict[str, Any]:
    """The OpenAPI description."""
    _, schemas = msgspec.json.schema_components(SCHEMAS, ref_template="#/components/schemas/{name}")
    schemas["CompletionRequest"]["properties"]["prompt"] = PROMPTS
    for name in ("CompletionRequest", "ChatRequest"):
        for field, schema in schemas[name]["properties"].items():
            if field in REFUSED:
                schema |= {"description": "Not supported: only what asks for nothing.", "enum": list(REFUSED[field])}
            elif field in IGNORED:
                schema["description"] = "Ignored."
    generating = {
        "/generate": post(
            "Continue a prompt", "GenerateRequest", "GenerateResponse", "GeneratePart", {"prompt": "Hello world!"}
        ),
        "/v1/completions": post(
            "Continue prompts, as OpenAI does",
            "CompletionRequest",
            "CompletionResponse",
            "CompletionResponse",
            {"prompt": "def "},
        ),
        "/v1/chat/completions": post(
            "Answer in a chat, as OpenAI does",
            "ChatRequest",
            "ChatResponse",
            "ChatChunk",
            {"messages": [{"role": "user", "content": "Hello!"}]},
        ),
    }
    model = get("The model, if it has this name", "Model", 404, 503)
    model["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    watching = {
        "/v1/models": {"get": get("The model that the ring serves", "ModelList", 503)},
        "/v1/models/{model}": {"get": model},
        "/health": {"get": unlocked(get("200 only while tokens can flow", "Health"))},
        "/ready": {"get": unlocked(get("200 only while another request would be taken on", "Health"))},
        "/metrics": {
            "get": {"summary": "Figures for Prometheus", "responses": {"200": plain("text/plain")} | failures(401, 403)}
        },
        "/openapi.json": {"get": unlocked({"summary": "This description", "responses": {"200": plain(JSON)} | failures(403)})},
        "/docs": {
            "get": unlocked({"summary": "The same for people", "responses": {"200": plain("text/html")} | failures(403)})
        },
    }
    for path in ("/health", "/ready"):
        watching[path]["get"]["responses"]["503"] = content("It is not so; says why", {JSON: ref("Health")})
    return {
        "openapi": "3.1.0",
        "info": {"title": "ring", "version": __version__, "description": "One language model on several plain machines."},
        "paths": {path: {"post": operation} for path, operation in generating.items()} | watching,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def ref(name: str) -> dict[str, Any]:
    """A schema by its name."""
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def content(words: str, kinds: dict[str, Any]) -> dict[str, Any]:
    """A response."""
    return {"description": words, "content": kinds}


def plain(kind: str) -> dict[str, Any]:
    """A response that no schema describes."""
    return content("", {kind: {}})


def failures(*statuses: int) -> dict[str, Any]:
    """Responses with an error."""
    return {str(status): content(REASONS[status], {JSON: ref("ErrorBody")}) for status in statuses}


REASONS = {
    400: "The request cannot be done as it is",
    401: "No API key, or an unknown one",
    403: "Called by a name that is not served",
    404: "No such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    429: "Too much is running already; try again later",
    500: "A bug of the gateway",
    502: "A stage failed",
    503: "The ring cannot be reached, or the gateway is shutting down",
    504: "Not complete within the time limit",
}


def get(summary: str, answer: str, *statuses: int) -> dict[str, Any]:
    """A GET that answers with a struct."""
    return {"summary": summary, "responses": {"200": content("", {JSON: ref(answer)})} | failures(401, 403, *statuses)}


def post(summary: str, body: str, whole: str, part: str, example: dict[str, Any]) -> dict[str, Any]:
    """A POST that generates."""
    done = content(f"The answer; with `stream`, events that each hold a {part}", {JSON: ref(whole), EVENTS: {}})
    request = {"required": True, "content": {JSON: ref(body) | {"example": example}}}
    return {"summary": summary, "requestBody": request, "responses": {"200": done} | failures(*REASONS)}


def unlocked(operation: dict[str, Any]) -> dict[str, Any]:
    """An operation that needs no key."""
    operation["responses"].pop("401", None)
    return operation | {"security": []}
