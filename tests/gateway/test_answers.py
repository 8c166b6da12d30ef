"""Answers and failures over HTTP, with a fake ring."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.types import Message

from ring.answers import RingError
from ring.gateway.app import Limits
from ring.gateway.errors import FAILURES
from tests.gateway.fakes import Fixture, gateway, status

Body = dict[str, Any]


def with_gateway(check: Callable[[Fixture], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def run() -> None:
        async with gateway(**options) as fixture:
            await check(fixture)

    asyncio.run(asyncio.wait_for(run(), 20))


def events(text: str) -> list[Any]:
    """The events of a stream, but for the last one, which is [DONE]."""
    *frames, done = [frame.removeprefix("data: ") for frame in text.split("\n\n") if frame]
    assert done == "[DONE]"
    return [json.loads(frame) for frame in frames]


def test_generate() -> None:
    async def check(fixture: Fixture) -> None:
        answer = (await fixture.post("/generate", prompt="x", timings=True, logprobs=1)).json()
        assert answer["output"] == "Hello!" and answer["elapsed_ms"] >= 0
        assert (answer["prompt_tokens"], answer["completion_tokens"], answer["finish_reason"]) == (3, 3, "stop")
        assert answer["timings"]["stages"][0]["laps"] == 3
        first = {"token_id": 0, "logprob": -0.5, "token": "Hel"}
        assert answer["logprobs"][0] == first | {"top": [{"token_id": 99, "logprob": -1.0, "token": "bytes:\\xe2\\x80"}]}
        plain = (await fixture.post("/generate", prompt="x")).json()
        assert "timings" not in plain and "logprobs" not in plain

    with_gateway(check)


def test_generate_streams() -> None:
    async def check(fixture: Fixture) -> None:
        response = await fixture.post("/generate", prompt="x", stream=True)
        assert response.headers["content-type"].startswith("text/event-stream")
        *parts, last = events(response.text)
        assert [part["text"] for part in parts] == ["Hel", "lo", "!"]
        assert last["output"] == "Hello!"

    with_gateway(check)


def test_completions_count_a_prompt_once_whatever_n() -> None:
    async def check(fixture: Fixture) -> None:
        answer = (await fixture.post("/v1/completions", prompt=["a", "b"], n=2, echo=True)).json()
        assert answer["object"] == "text_completion" and answer["model"] == "org/tiny"
        assert [choice["text"] for choice in answer["choices"]] == ["aHello!", "aHello!", "bHello!", "bHello!"]
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 12, "total_tokens": 18}

    with_gateway(check)


def test_completions_stream() -> None:
    async def check(fixture: Fixture) -> None:
        options: Body = {"stream": True, "stream_options": {"include_usage": True}, "echo": True}
        *chunks, usage = events((await fixture.post("/v1/completions", prompt=["a", "b"], **options)).text)
        for index, expected in enumerate(("aHello!", "bHello!")):
            own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
            assert "".join(choice["text"] for choice in own) == expected
            assert [choice["finish_reason"] for choice in own] == [None, None, None, None, "stop"]
        assert all(chunk["usage"] is None for chunk in chunks)
        assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 12
        unasked = events((await fixture.post("/v1/completions", prompt="a", stream=True)).text)
        assert all("usage" not in chunk for chunk in unasked)

    with_gateway(check)


def test_completion_logprobs_say_where_each_token_is() -> None:
    async def check(fixture: Fixture) -> None:
        answer = (await fixture.post("/v1/completions", prompt="a", logprobs=1)).json()
        told = answer["choices"][0]["logprobs"]
        assert told["tokens"] == ["né", "日本", "!"]
        assert told["text_offset"] == [0, 2, 4]
        assert told["token_logprobs"] == [-0.5] * 3
        assert told["top_logprobs"] == [{"bytes:\\xe2\\x80": -1.0}] * 3

    with_gateway(check, words=["né", "日本", "!"])


def test_chat() -> None:
    async def check(fixture: Fixture) -> None:
        messages = [{"role": "user", "content": "hi"}]
        answer = (await fixture.post("/v1/chat/completions", messages=messages, logprobs=True, top_logprobs=1)).json()
        (choice,) = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": "Hello!", "refusal": None}
        top = [{"token": "bytes:\\xe2\\x80", "logprob": -1.0, "bytes": [0xE2, 0x80]}]
        assert choice["logprobs"]["content"][2] == {"token": "!", "logprob": -0.5, "bytes": [33], "top_logprobs": top}
        chunks = events((await fixture.post("/v1/chat/completions", messages=messages, n=2, stream=True)).text)
        assert [chunk["choices"][0]["delta"] for chunk in chunks[:2]] == [{"role": "assistant", "content": ""}] * 2
        for index in (0, 1):
            deltas = [c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"] if c["index"] == index]
            assert "".join(deltas) == "Hello!"

    with_gateway(check)


@pytest.mark.parametrize("code", [*FAILURES, "something_new"])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_what_the_ring_refuses_has_a_status(code: str, path: str) -> None:
    async def check(fixture: Fixture) -> None:
        fixture.ring.fails = RingError(code, "the sentence")
        for stream in (False, True):
            response = await fixture.post(path, prompt="x", stream=stream)
            expected, openai_code, headers = FAILURES.get(code, (502, code, {}))
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["message"]) == (expected, openai_code, "the sentence")
            assert all(response.headers[name] == value for name, value in headers.items())
        assert fixture.gateway.desk.running == 0

    with_gateway(check)


def test_a_failure_in_mid_stream_is_an_event() -> None:
    async def check(fixture: Fixture) -> None:
        fixture.ring.fails, fixture.ring.fails_after = RingError("stage_failed", "stage 1 failed: out of memory"), 2
        response = await fixture.post("/v1/completions", prompt="x", stream=True)
        assert response.status_code == 200
        *_, last = [json.loads(frame.removeprefix("data: ")) for frame in response.text.split("\n\n") if frame]
        assert last["error"]["code"] == "stage_failed" and "stage 1" in last["error"]["message"]

    with_gateway(check)


def test_one_failed_choice_fails_the_request_and_cancels_the_others() -> None:
    async def check(fixture: Fixture) -> None:
        fixture.ring.go.clear()
        asking = asyncio.create_task(fixture.post("/v1/completions", prompt=["a", "b"]))
        while len(fixture.ring.asked) < 2:
            await asyncio.sleep(0)
        fixture.ring.fails, fixture.ring.fails_after = RingError("stage_failed", "no"), 1
        fixture.ring.go.set()
        assert (await asking).status_code == 502
        assert fixture.gateway.desk.running == 0

    with_gateway(check)


def scope(path: str, content_length: int | None = None) -> dict[str, Any]:
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    if content_length is not None:
        headers.append((b"content-length", str(content_length).encode()))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 80),
    }


async def call(fixture: Fixture, pieces: list[Message], hang_up: asyncio.Event | None, **fields: Any) -> list[Message]:
    """Call the application as a server does; after `pieces` of the body it waits until `hang_up`, or for ever."""
    sent: list[Message] = []

    async def receive() -> Message:
        if pieces:
            return pieces.pop(0)
        await (hang_up or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await fixture.app(scope("/generate", **fields), receive, send)
    return sent


def body(text: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": text, "more_body": more}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_cancels_its_generation(stream: bool) -> None:
    async def check(fixture: Fixture) -> None:
        fixture.ring.go.clear()
        hang_up = asyncio.Event()
        request = body(json.dumps({"prompt": "x", "stream": stream}).encode())
        calling = asyncio.create_task(call(fixture, [request], hang_up))
        while not fixture.ring.asked:
            await asyncio.sleep(0)
        assert fixture.gateway.desk.running == 1
        hang_up.set()
        assert await calling == []
        assert (fixture.ring.cancelled, fixture.gateway.desk.running) == (1, 0)
        page = fixture.gateway.metrics.render(None).decode()
        assert 'ring_http_requests_total{path="/generate",status="499"} 1.0' in page
        assert 'ring_failures_total{code="disconnected"} 1.0' in page

    with_gateway(check)


def test_a_body_that_never_comes_is_told_so() -> None:
    async def check(fixture: Fixture) -> None:
        start, _ = await call(fixture, [body(b'{"prompt', more=True)], None, content_length=50)
        assert start["status"] == 408
        assert (b"connection", b"close") in [(name.lower(), value) for name, value in start["headers"]]

    with_gateway(check, limits=Limits(body_patience_s=0.05))


def test_a_client_that_hangs_up_in_its_body_is_no_bug() -> None:
    async def check(fixture: Fixture) -> None:
        hang_up = asyncio.Event()
        hang_up.set()
        await call(fixture, [body(b'{"prompt', more=True)], hang_up)
        assert 'ring_failures_total{code="disconnected"} 1.0' in fixture.gateway.metrics.render(None).decode()

    with_gateway(check)


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large(declared: bool) -> None:
    async def check(fixture: Fixture) -> None:
        pieces = [body(b"x" * 60, more=left > 0) for left in (2, 1, 0)]
        start, answer = await call(fixture, pieces, None, content_length=180 if declared else None)
        assert start["status"] == 413
        assert json.loads(answer["body"])["error"]["code"] == "request_too_large"
        assert not pieces, "hanging up on a client that is sending can lose the answer"

    with_gateway(check, limits=Limits(max_body=100))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "Expected `object`"),
        (b"[" * 5000, "Expected `object`"),
    ],
)
def test_what_is_not_json(raw: bytes, words: str) -> None:
    async def check(fixture: Fixture) -> None:
        response = await fixture.http.post("/generate", content=raw, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]

    with_gateway(check)


def test_a_form_is_not_json() -> None:
    async def check(fixture: Fixture) -> None:
        response = await fixture.http.post("/generate", content=b'{"prompt": "x"}', headers={"Content-Type": "text/plain"})
        assert response.status_code == 415

    with_gateway(check)


def test_the_time_limit() -> None:
    async def check(fixture: Fixture) -> None:
        fixture.ring.go.clear()
        response = await fixture.post("/generate", prompt="x")
        assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")
        assert fixture.ring.cancelled == 1

    with_gateway(check, limits=Limits(time_limit_s=0.05))


def test_no_more_generations_than_may_run() -> None:
    async def check(fixture: Fixture) -> None:
        fixture.ring.go.clear()
        first = asyncio.create_task(fixture.post("/v1/completions", prompt=["a", "b"]))
        while len(fixture.ring.asked) < 2:
            await asyncio.sleep(0)
        second = await fixture.post("/generate", prompt="x")
        assert (second.status_code, second.headers["retry-after"]) == (429, "1")
        assert second.json()["error"]["code"] == "rate_limit_exceeded"
        third = await fixture.post("/v1/completions", prompt="x", n=3)
        assert third.status_code == 400 and "at most 2 at once" in third.json()["error"]["message"]
        assert (await fixture.http.get("/ready")).status_code == 503
        assert (await fixture.http.get("/health")).status_code == 200
        fixture.ring.go.set()
        assert (await first).status_code == 200
        assert (await fixture.post("/generate", prompt="x")).status_code == 200

    with_gateway(check, limits=Limits(max_requests=2))


def test_shutting_down_ends_what_is_too_slow_and_takes_nothing_new() -> None:
    async def check(fixture: Fixture) -> None:
        fixture.ring.go.clear()
        slow = asyncio.create_task(fixture.post("/generate", prompt="x"))
        while not fixture.ring.asked:
            await asyncio.sleep(0)
        fixture.gateway.desk.drain(0.05)
        refused = await fixture.post("/generate", prompt="x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        ended = await slow
        assert (ended.status_code, ended.json()["error"]["code"]) == (503, "draining")
        assert "shutting down" in (await fixture.http.get("/ready")).json()["detail"]

    with_gateway(check)


def test_health_says_what_is_missing() -> None:
    async def check(fixture: Fixture) -> None:
        assert (await fixture.http.get("/health")).json()["status"] == "ok"
        fixture.gateway.upstream.status = status("forming", "stage 2 lost the node before it")
        response = await fixture.http.get("/health")
        assert response.status_code == 503
        assert "stage 2" in response.json()["detail"]
        fixture.gateway.upstream.status, fixture.gateway.upstream._client = None, None
        fixture.gateway.upstream.problem = "stage 0 (the head) does not answer"
        response = await fixture.http.get("/health")
        assert (response.status_code, response.json()["state"]) == (503, "no_head")
        assert "stage 0" in response.json()["detail"]
        for path in ("/generate", "/v1/completions"):
            response = await fixture.post(path, prompt="x")
            assert (response.status_code, response.json()["error"]["code"]) == (503, "no_head")

    with_gateway(check)


def test_models() -> None:
    async def check(fixture: Fixture) -> None:
        assert (await fixture.http.get("/v1/models")).json()["data"][0]["id"] == "org/tiny"
        assert (await fixture.http.get("/v1/models/org/tiny")).json()["object"] == "model"
        for response in (
            await fixture.http.get("/v1/models/other"),
            await fixture.post("/v1/completions", prompt="x", model="o"),
        ):
            assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
            assert "org/tiny" in response.json()["error"]["message"]

    with_gateway(check)


def test_no_such_path_or_method() -> None:
    async def check(fixture: Fixture) -> None:
        for method, path, expected in (("GET", "/nothing", 404), ("GET", "/generate", 405), ("POST", "/health", 405)):
            response = await fixture.http.request(method, path)
            assert response.status_code == expected
            assert path in response.json()["error"]["message"]

    with_gateway(check)
