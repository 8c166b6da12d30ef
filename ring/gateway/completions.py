"""`POST /v1/completions`: OpenAI's older, plain continuation of text; what a base model is good for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ring.answers import Completion
from ring.gateway.answer import Ask
from ring.gateway.errors import BadRequest
from ring.gateway.generate import TokenId, token_text
from ring.gateway.openai import OpenAIForm
from ring.gateway.parameters import Parameters, Usage
from ring.wire.clients import FinishReason, Logprob
from ring.wire.messages import MAX_LOGPROBS

DEFAULT_TOKENS = 16
MAX_PROMPTS = 64

TokenIds = Annotated[list[TokenId], Meta(min_length=1)]
several = Meta(max_length=MAX_PROMPTS)


class CompletionRequest(Parameters, forbid_unknown_fields=True, kw_only=True):
    """One prompt or several, each as text or as token ids."""

    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    suffix: Any = None
    best_of: Any = None

    def asks(self, max_tokens: int) -> list[Ask]:
        """What the ring is asked: for each prompt `n` generations.

        Raises:
            BadRequest: it asks for what cannot be done.
        """
        if self.best_of is not None and self.best_of == self.n:
            self.best_of = None  # all that are made are returned
        self.check()
        prompts = split_prompts(self.prompt)
        options = self.options(max_tokens, DEFAULT_TOKENS, self.max_tokens) | {"logprobs": self.logprobs}
        if self.echo and any("token_ids" in prompt for prompt in prompts):
            raise BadRequest("echo needs the prompt as text", "echo", "unsupported_parameter")
        if self.echo and self.logprobs is not None:
            raise BadRequest("logprobs of an echoed prompt are not computed here", "echo", "unsupported_parameter")
        return [options | prompt | {"seed": seed} for prompt in prompts for seed in self.seeds()]


def split_prompts(prompt: str | list[Any]) -> list[Ask]:
    """The four ways of OpenAI to give prompts: a string, strings, token ids, lists of token ids.

    Raises:
        BadRequest: something else, none, or too many.
    """
    if isinstance(prompt, str):
        return [{"prompt": prompt}]
    try:
        if prompt and isinstance(prompt[0], str):
            return [{"prompt": text} for text in msgspec.convert(prompt, Annotated[list[str], several])]
        if prompt and isinstance(prompt[0], list):
            return [{"token_ids": ids} for ids in msgspec.convert(prompt, Annotated[list[TokenIds], several])]
        return [{"token_ids": msgspec.convert(prompt, TokenIds)}]
    except msgspec.ValidationError as error:
        kinds = "a string, a list of strings, of token ids, or of lists of token ids"
        raise BadRequest(f"prompt must be {kinds}, of at most {MAX_PROMPTS}: {error}", "prompt") from None


class CompletionLogprobs(msgspec.Struct):
    """Parallel lists, a place for each token; `text_offset` is where its text begins, in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    """One continuation; of prompt `index // n` if there are several prompts."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class CompletionResponse(msgspec.Struct):
    """The answer, or one chunk of it in a stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    usage: Usage | UnsetType | None = UNSET


class CompletionForm(OpenAIForm[CompletionChoice]):
    """How completions are answered."""

    def __init__(self, request: CompletionRequest, asks: list[Ask], model: str) -> None:
        super().__init__(request, "cmpl", model)
        self._echoes = [ask["prompt"] if request.echo else "" for ask in asks]
        self._offsets = [0] * len(asks)

    def opening(self) -> list[msgspec.Struct]:
        """The prompts, if they are to be echoed."""
        return [self.response([CompletionChoice(k, echo)]) for k, echo in enumerate(self._echoes) if echo]

    def whole(self, answers: list[Completion]) -> msgspec.Struct:
        """All choices."""
        choices = [
            self.piece(k, self._echoes[k] + answer.text, answer.logprobs, answer.finish_reason)
            for k, answer in enumerate(answers)
        ]
        return self.response(choices, self.usage(answers))

    def chunk(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> CompletionResponse:
        """A chunk with these choices, or all of the answer."""
        return CompletionResponse(self.id, self.created, self.model, choices, usage=usage)

    def piece(self, index: int, text: str, logprobs: list[list[Logprob]], reason: FinishReason | None) -> CompletionChoice:
        """A choice, or its part of a chunk."""
        return CompletionChoice(index, text, self._logprobs(index, logprobs), reason)

    def _logprobs(self, index: int, rows: list[list[Logprob]]) -> CompletionLogprobs | None:
        if not rows:
            return None
        told = CompletionLogprobs([], [], [], [])
        for own, *top in rows:
            told.tokens.append(token_text(own))
            told.token_logprobs.append(own.logprob)
            told.top_logprobs.append({token_text(token): token.logprob for token in top})
            told.text_offset.append(self._offsets[index])
            self._offsets[index] += sum(byte & 0xC0 != 0x80 for byte in own.raw)  # each character has one such byte
        return told
