"""OpenAI's parameters: what both of its endpoints share, and what is refused or ignored, and why.

`docs/http.md` shows the same as a table; a test compares both with the official package.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ring.gateway.answer import Ask
from ring.gateway.errors import BadRequest
from ring.gateway.generate import StopString, StopStrings, stop_strings

MAX_N = 16
SEEDS = (1 << 63) - 1

REFUSED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "store": (None, False),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
"""What this gateway cannot do, and the values with which nothing is asked of it."""

IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "user",
    }
)
"""What may be sent and changes no answer."""


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """`include_usage` adds a last chunk with the token counts. Obfuscation is ignored: it hides sizes from eavesdroppers."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Parameters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What completions and chat completions have in common. `top_k` and `ignore_eos` are this gateway's own."""

    model: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 31)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None
    stop: StopString | StopStrings | None = None
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    ignore_eos: bool = False
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None
    user: Any = None

    def check(self) -> None:
        """Raises BadRequest for what is asked and cannot be done."""
        for name in self.__struct_fields__:
            neutral = REFUSED.get(name)
            value = getattr(self, name)
            if neutral is not None and not any(value == one and type(value) in (type(one), float) for one in neutral):
                raise BadRequest(f"{name} is not supported here; leave it out", name, "unsupported_parameter")
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options is for streams only", "stream_options")

    def options(self, max_tokens: int, default_tokens: int, asked_tokens: int | None) -> Ask:
        """What the ring is asked, but for the prompt and the seed.

        Raises:
            BadRequest: more tokens than this gateway allows.
        """
        if asked_tokens is not None and asked_tokens > max_tokens:
            raise BadRequest(f"max_tokens is at most {max_tokens} on this gateway", "max_tokens")
        return {
            "max_tokens": asked_tokens or min(default_tokens, max_tokens),
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else max(self.top_p, 1e-9),  # 0: the likeliest token alone
            "top_k": self.top_k or 0,
            "stop": stop_strings(self.stop),
            "ignore_eos": self.ignore_eos,
        }

    def seeds(self) -> list[int | None]:
        """One for each of the `n` choices; the first one's is the one that was given."""
        return [None if self.seed is None else (self.seed + choice) & SEEDS for choice in range(self.n or 1)]

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class Usage(msgspec.Struct):
    """Tokens: a prompt counts once, whatever `n`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


def count(prompts: list[int], completions: list[int]) -> Usage:
    """The usage of a request."""
    return Usage(sum(prompts), sum(completions), sum(prompts) + sum(completions))
