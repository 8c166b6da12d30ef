"""How both of OpenAI's endpoints answer; they differ in what a choice is."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from ring.answers import Completion, GenerateEvent
from ring.gateway.parameters import Parameters, Usage, count
from ring.wire.clients import FinishReason, Logprob

Choice = TypeVar("Choice", bound=msgspec.Struct)


class OpenAIForm(ABC, Generic[Choice]):
    """A `Form` whose streams are chunks of choices, with the usage as the last one if it was asked for.

    Args:
        request: what was asked.
        prefix: what the answer's id begins with.
        model: the model's name.
    """

    def __init__(self, request: Parameters, prefix: str, model: str) -> None:
        self.asked = request
        self.model = model
        self.id = f"{prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())

    def part(self, index: int, event: GenerateEvent) -> msgspec.Struct | None:
        """The new text; None if an event shows nothing."""
        if not event.text and not event.logprobs and event.finish_reason is None:
            return None
        return self.response([self.piece(index, event.text, event.logprobs, event.finish_reason)])

    def closing(self, answers: list[Completion]) -> list[msgspec.Struct]:
        """The usage, if asked for."""
        return [self.response([], self.usage(answers))] if self.asked.wants_usage else []

    def usage(self, answers: list[Completion]) -> Usage:
        """The tokens of all answers; of a prompt's `n` answers, the first one counts its tokens."""
        firsts = answers[:: self.asked.n or 1]
        return count([answer.prompt_tokens for answer in firsts], [len(answer.token_ids) for answer in answers])

    def response(self, choices: list[Choice], usage: Usage | None = None) -> msgspec.Struct:
        """A chunk; once a usage is asked for, every chunk has the field."""
        return self.chunk(choices, usage or (None if self.asked.wants_usage else UNSET))

    @abstractmethod
    def chunk(self, choices: list[Choice], usage: Usage | UnsetType | None) -> msgspec.Struct:
        """A chunk with these choices."""

    @abstractmethod
    def piece(self, index: int, text: str, logprobs: list[list[Logprob]], reason: FinishReason | None) -> Choice:
        """A choice's part of a chunk."""
