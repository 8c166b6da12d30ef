"""`POST /generate`: the plain way to ask, with all that the ring can tell."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
from msgspec import Meta

from ring.answers import Completion, GenerateEvent
from ring.gateway.answer import Ask
from ring.gateway.errors import BadRequest
from ring.wire.clients import FinishReason, Logprob, Timings
from ring.wire.messages import MAX_LOGPROBS

TokenId = Annotated[int, Meta(ge=0, le=1 << 31)]
StopString = Annotated[str, Meta(min_length=1, max_length=1000)]
StopStrings = Annotated[list[StopString], Meta(max_length=16)]


class GenerateRequest(msgspec.Struct, forbid_unknown_fields=True):
    """One prompt, as text or as token ids, and how to continue it. Temperature 0 takes the likeliest token."""

    prompt: str | None = None
    token_ids: list[TokenId] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] = 128
    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    stop: StopString | StopStrings | None = None
    ignore_eos: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    stream: bool = False
    timings: bool = False

    def ask(self, max_tokens: int) -> Ask:
        """What the ring is asked.

        Raises:
            BadRequest: it asks for what the ring would refuse anyway, or for more tokens than `max_tokens`.
        """
        if (self.prompt is None) == (self.token_ids is None):
            raise BadRequest("give either a prompt or token_ids", "prompt")
        if self.max_tokens > max_tokens:
            raise BadRequest(f"max_tokens is at most {max_tokens} on this gateway", "max_tokens")
        return {
            "prompt": self.prompt,
            "token_ids": self.token_ids,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "stop": stop_strings(self.stop),
            "ignore_eos": self.ignore_eos,
            "logprobs": self.logprobs,
        }


class TokenLogprob(msgspec.Struct, omit_defaults=True):
    """A token, its natural log-probability, and its text; `top` are the likeliest ones in its place."""

    token_id: int
    logprob: float
    token: str
    top: list[TokenLogprob] = []


class GenerateResponse(msgspec.Struct, omit_defaults=True):
    """The answer. `elapsed_ms` is measured at the gateway; `timings` (if asked for) is where the ring spent the time."""

    output: str
    elapsed_ms: float
    token_ids: list[int]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    seed: int
    logprobs: list[TokenLogprob] | None = None
    timings: Timings | None = None


class GeneratePart(msgspec.Struct, omit_defaults=True):
    """What is streamed as it comes; the stream ends with a whole GenerateResponse."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None


class GenerateForm:
    """How `/generate` answers."""

    def __init__(self, request: GenerateRequest) -> None:
        self.request = request
        self._started = time.monotonic()

    def opening(self) -> list[msgspec.Struct]:
        """Nothing."""
        return []

    def part(self, index: int, event: GenerateEvent) -> msgspec.Struct | None:
        """The new tokens and their text."""
        if not event.token_ids and not event.text:
            return None
        return GeneratePart(event.text, event.token_ids, self._logprobs(event.logprobs))

    def closing(self, answers: list[Completion]) -> list[msgspec.Struct]:
        """The same as without streaming."""
        return [self.whole(answers)]

    def whole(self, answers: list[Completion]) -> msgspec.Struct:
        """Everything."""
        (answer,) = answers
        return GenerateResponse(
            output=answer.text,
            elapsed_ms=round((time.monotonic() - self._started) * 1e3, 3),
            token_ids=answer.token_ids,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=len(answer.token_ids),
            finish_reason=answer.finish_reason,
            seed=answer.seed,
            logprobs=self._logprobs(answer.logprobs),
            timings=answer.timings if self.request.timings else None,
        )

    def _logprobs(self, rows: list[list[Logprob]]) -> list[TokenLogprob] | None:
        if self.request.logprobs is None:
            return None
        return [
            TokenLogprob(
                own.token_id, own.logprob, token_text(own), [TokenLogprob(t.token_id, t.logprob, token_text(t)) for t in top]
            )
            for own, *top in rows
        ]


def token_text(token: Logprob) -> str:
    """A token as text; one that is not whole characters as OpenAI writes it, such as `bytes:\\xe2\\x80`."""
    try:
        return token.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)


def stop_strings(stop: str | list[str] | None) -> list[str]:
    """One, several or none, as a list."""
    return [stop] if isinstance(stop, str) else stop or []
