"""What a RingClient gives its caller: events, whole completions, and errors."""

from __future__ import annotations

from dataclasses import dataclass, field

from ring.wire.clients import FinishReason, Logprob, Timings


class RingError(Exception):
    """A request that failed; the message is one sentence. `code` is the head's word for it, such as `busy`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NoHead(RingError):
    """Nothing answers at the head's address, or it has stopped answering."""

    def __init__(self, message: str) -> None:
        super().__init__("no_head", message)


class WrongKeys(NoHead):
    """There is a head, but the keys do not fit; the message says whose, and what to do."""


@dataclass(frozen=True, slots=True)
class GenerateEvent:
    """New tokens of a generation.

    `text` is what has become certain with them; a character or a possible stop string may need more tokens. The last
    event brings no tokens but the rest of the text, and it alone has `finish_reason` (`stop`, `length` or `cancelled`),
    `prompt_tokens`, the `seed` used and `timings`. `sequence` is the head's number for the generation, as in a `LapRun`.
    `logprobs`, if asked for, has a row for each token: its own, then those of the likeliest tokens.
    """

    token_ids: list[int]
    text: str
    sequence: int
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    seed: int | None = None
    timings: Timings | None = None
    notice: str | None = None
    logprobs: list[list[Logprob]] = field(default_factory=list)


@dataclass(slots=True)
class Completion:
    """A whole generation, as `RingClient.complete` collects it."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 0
    seed: int = 0
    timings: Timings | None = None
    logprobs: list[list[Logprob]] = field(default_factory=list)

    def add(self, event: GenerateEvent) -> None:
        """Take one event."""
        self.text += event.text
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs
        if event.finish_reason is not None:
            assert event.prompt_tokens is not None and event.seed is not None
            self.finish_reason, self.prompt_tokens = event.finish_reason, event.prompt_tokens
            self.seed, self.timings = event.seed, event.timings
