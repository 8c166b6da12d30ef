"""OpenAI's parameters: every one that the official package knows is supported, refused or ignored, and the docs say so."""

from __future__ import annotations

import asyncio
import re
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from ring.gateway.chat import ChatRequest
from ring.gateway.completions import CompletionRequest
from ring.gateway.errors import BadRequest
from ring.gateway.parameters import IGNORED, REFUSED, Parameters
from tests.gateway.fakes import gateway

OWN = {"top_k", "ignore_eos"}
DOCS = Path(__file__).parents[2] / "docs" / "http.md"
BODIES: list[tuple[type[Parameters], Any, dict[str, Any]]] = [
    (CompletionRequest, completion_create_params.CompletionCreateParamsStreaming, {"prompt": "x"}),
    (
        ChatRequest,
        chat_create_params.CompletionCreateParamsStreaming,
        {"messages": [{"role": "user", "content": "x"}]},
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "_body"), BODIES)
def test_every_parameter_of_the_official_package_is_known(ours: type[Parameters], theirs: Any, _body: Any) -> None:
    assert set(typing.get_type_hints(theirs)) == set(ours.__struct_fields__) - OWN


def test_the_table_in_the_docs_is_complete_and_right() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \|", DOCS.read_text(), re.MULTILINE)
    told = {name: (completions.strip(), chat.strip()) for name, completions, chat in rows}
    for column, ours in enumerate((CompletionRequest, ChatRequest)):
        for name in ours.__struct_fields__:
            fate = "refused" if name in REFUSED else "ignored" if name in IGNORED else "supported"
            assert told[name][column] == fate, name
    for name, fates in told.items():
        assert [fate != "–" for fate in fates] == [name in ours.__struct_fields__ for ours in (CompletionRequest, ChatRequest)]


@pytest.mark.parametrize(("ours", "_theirs", "body"), BODIES)
def test_what_is_refused_passes_with_a_neutral_value_and_nothing_else(
    ours: type[CompletionRequest | ChatRequest], _theirs: Any, body: dict[str, Any]
) -> None:
    refused = set(REFUSED) & set(ours.__struct_fields__)
    assert len(refused) > 4
    for name in refused:
        for neutral in REFUSED[name]:
            assert len(msgspec.convert(body | {name: neutral}, ours).asks(100)) == 1
        for other in ({"some": "thing"}, 0.5, True):
            with pytest.raises(BadRequest, match=f"{name} is not supported") as caught:
                msgspec.convert(body | {name: other}, ours).asks(100)
            assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


def test_a_penalty_of_zero_is_none_but_false_is_no_number() -> None:
    assert ask(frequency_penalty=0.0, presence_penalty=0)
    with pytest.raises(BadRequest, match="presence_penalty"):
        ask(presence_penalty=False)


def ask(**body: Any) -> list[dict[str, Any]]:
    return msgspec.convert({"prompt": "x"} | body, CompletionRequest).asks(100)


def test_prompts_of_all_four_kinds() -> None:
    assert [a["prompt"] for a in ask(prompt="one")] == ["one"]
    assert [a["prompt"] for a in ask(prompt=["one", "two"])] == ["one", "two"]
    assert [a["token_ids"] for a in ask(prompt=[1, 2])] == [[1, 2]]
    assert [a["token_ids"] for a in ask(prompt=[[1, 2], [3]])] == [[1, 2], [3]]
    bads: list[list[Any]] = [[], [1, "x"], ["x", 1], [[]], [[1], "x"], [-1], [1.5], ["x"] * 65, [None]]
    for bad in bads:
        with pytest.raises(BadRequest, match="prompt must be"):
            ask(prompt=bad)


def test_n_choices_of_each_prompt_have_seeds_of_their_own() -> None:
    assert [(a["prompt"], a["seed"]) for a in ask(prompt=["a", "b"], n=2, seed=7)] == [("a", 7), ("a", 8), ("b", 7), ("b", 8)]
    assert [a["seed"] for a in ask(n=2)] == [None, None]
    assert ask(seed=-1)[0]["seed"] == (1 << 63) - 1
    assert len(ask(n=2, best_of=2)) == 2
    with pytest.raises(BadRequest, match="best_of"):
        ask(n=2, best_of=3)


def test_defaults_are_openai_s() -> None:
    (asked,) = ask()
    assert (asked["temperature"], asked["top_p"], asked["max_tokens"], asked["stop"]) == (1.0, 1.0, 16, [])
    assert ask(top_p=0)[0]["top_p"] > 0
    assert ask(stop="x")[0]["stop"] == ["x"]


def test_the_gateway_s_limit_of_tokens() -> None:
    assert ask(max_tokens=100)[0]["max_tokens"] == 100
    with pytest.raises(BadRequest, match="at most 100"):
        ask(max_tokens=101)


def test_chat_messages_become_turns() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": parts},
        {"role": "assistant", "content": "c", "tool_calls": None, "refusal": None},
    ]
    (asked,) = msgspec.convert({"messages": messages, "max_completion_tokens": 7, "max_tokens": 9}, ChatRequest).asks(100)
    assert [(turn.role, turn.content) for turn in asked["messages"]] == [("system", "ab"), ("assistant", "c")]
    assert asked["max_tokens"] == 7


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "assistant", "tool_calls": [{}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
    ],
)
def test_messages_with_more_than_text_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="here") as caught:
        msgspec.convert({"messages": [{"role": "user", "content": "x"}, message]}, ChatRequest).asks(100)
    assert caught.value.param == "messages[1]"


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("/v1/completions", {"prompt": "x", "n": 0}, "n", ">= 1"),
        ("/v1/completions", {"prompt": "x", "temperature": 3}, "temperature", "<= 2"),
        ("/v1/completions", {"prompt": "x", "stop": [""]}, "stop[0]", "length >= 1"),
        ("/v1/completions", {"prompt": "x", "surprise": 1}, "surprise", "unknown field"),
        ("/v1/completions", {"prompt": "x", "echo": True, "logprobs": 1}, "echo", "echoed"),
        ("/v1/completions", {"prompt": [1, 2], "echo": True}, "echo", "as text"),
        ("/v1/completions", {"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options", "streams only"),
        ("/v1/completions", {}, None, "prompt"),
        ("/v1/chat/completions", {"messages": []}, "messages", "length >= 1"),
        ("/v1/chat/completions", {"messages": [{"role": "x"}]}, "messages[0].role", "Invalid enum"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}], "top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ("/generate", {}, "prompt", "either a prompt or token_ids"),
        ("/generate", {"prompt": "x", "token_ids": [1]}, "prompt", "either"),
        ("/generate", {"prompt": "x", "max_tokens": 5000}, "max_tokens", "at most 4096"),
    ],
)
def test_errors_name_the_parameter(path: str, body: dict[str, Any], param: str | None, words: str) -> None:
    async def run() -> None:
        async with gateway() as fixture:
            response = await fixture.post(path, **body)
            error = response.json()["error"]
            assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
            assert words in error["message"]
            assert fixture.ring.asked == []

    asyncio.run(run())
