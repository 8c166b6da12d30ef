"""`POST /v1/chat/completions`: a chat, written out by the model's own chat template."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ring.answers import Completion
from ring.gateway.answer import Ask
from ring.gateway.errors import BadRequest
from ring.gateway.generate import token_text
from ring.gateway.openai import OpenAIForm
from ring.gateway.parameters import Parameters, Usage
from ring.wire.clients import FinishReason, Logprob, Message
from ring.wire.messages import MAX_LOGPROBS

DEFAULT_TOKENS = 1024


class TextPart(msgspec.Struct):
    """A piece of a message's content; only `text` is understood."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    """One turn. An assistant's may be sent back as it came, with its empty fields."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: Any = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    tool_calls: Any = None
    function_call: Any = None
    tool_call_id: Any = None

    def turn(self, place: int) -> Message:
        """As the head takes it.

        Raises:
            BadRequest: it holds more than text.
        """
        where = f"messages[{place}]"
        if self.role in ("tool", "function") or self.tool_calls or self.function_call or self.audio:
            raise BadRequest("tools and audio are not supported here", where, "unsupported_parameter")
        content = self.content or ""
        if not isinstance(content, str):
            if any(part.type != "text" or part.text is None for part in content):
                raise BadRequest("the content of a message can only be text here", where, "unsupported_parameter")
            content = "".join(part.text or "" for part in content)
        return Message("system" if self.role == "developer" else self.role, content)


class ChatRequest(Parameters, forbid_unknown_fields=True, kw_only=True):
    """The chat so far; the answer is the assistant's next turn."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=10_000)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    metadata: Any = None
    modalities: Any = None
    moderation: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    tool_choice: Any = None
    tools: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    def asks(self, max_tokens: int) -> list[Ask]:
        """What the ring is asked: `n` generations.

        Raises:
            BadRequest: it asks for what cannot be done.
        """
        self.check()
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true", "top_logprobs")
        turns = [message.turn(place) for place, message in enumerate(self.messages)]
        options = self.options(max_tokens, DEFAULT_TOKENS, self.max_completion_tokens or self.max_tokens)
        options["logprobs"] = (self.top_logprobs or 0) if self.logprobs else None
        return [options | {"messages": turns, "seed": seed} for seed in self.seeds()]


class ChatLogprob(msgspec.Struct, omit_defaults=True):
    """A token; `bytes` is its text in UTF-8, which may be part of a character only."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[ChatLogprob] | UnsetType = UNSET


class ChatLogprobs(msgspec.Struct):
    """A place for each token."""

    content: list[ChatLogprob]
    refusal: None = None


class ChatAnswer(msgspec.Struct):
    """The assistant's turn."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    """One answer."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatResponse(msgspec.Struct):
    """The answer that is not streamed."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class Delta(msgspec.Struct, omit_defaults=True):
    """What a chunk adds to the assistant's turn."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """One answer's part of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(msgspec.Struct):
    """One chunk of a stream."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: Usage | UnsetType | None = UNSET


class ChatForm(OpenAIForm[ChunkChoice]):
    """How chats are answered."""

    def __init__(self, request: ChatRequest, asks: list[Ask], model: str) -> None:
        super().__init__(request, "chatcmpl", model)
        self.request = request
        self.count = len(asks)

    def opening(self) -> list[msgspec.Struct]:
        """Who speaks."""
        return [self.response([ChunkChoice(index, Delta("assistant", ""))]) for index in range(self.count)]

    def whole(self, answers: list[Completion]) -> msgspec.Struct:
        """All choices."""
        choices = [
            ChatChoice(
                index,
                ChatAnswer(answer.text),
                told(answer.logprobs) if self.request.logprobs else None,
                answer.finish_reason,
            )
            for index, answer in enumerate(answers)
        ]
        return ChatResponse(self.id, self.created, self.model, choices, self.usage(answers))

    def chunk(self, choices: list[ChunkChoice], usage: Usage | UnsetType | None) -> ChatChunk:
        """A chunk with these choices."""
        return ChatChunk(self.id, self.created, self.model, choices, usage=usage)

    def piece(self, index: int, text: str, logprobs: list[list[Logprob]], reason: FinishReason | None) -> ChunkChoice:
        """A choice's part of a chunk."""
        delta = Delta(content=text) if text else Delta()
        return ChunkChoice(index, delta, told(logprobs) if logprobs else None, reason)


def told(rows: list[list[Logprob]]) -> ChatLogprobs:
    """Log-probabilities as OpenAI writes them."""
    return ChatLogprobs([describe(own, [describe(token) for token in top]) for own, *top in rows])


def describe(token: Logprob, top: list[ChatLogprob] | UnsetType = UNSET) -> ChatLogprob:
    """A token as OpenAI writes it; only the sampled one has others with it."""
    return ChatLogprob(token_text(token), token.logprob, list(token.raw), top)
