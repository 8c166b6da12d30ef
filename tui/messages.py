"""Everything that the dashboard is ever told: by the head, or by its own connection and prompts.

The whole display follows from these messages and their times, so a recording is nothing but a list of them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ring.wire.clients import Event, Lap, Status, Timings
from ring.wire.messages import Number

Phase = Literal["connecting", "connected", "lost", "refused"]
Outcome = Literal["stop", "length", "cancelled", "failed"]


class Link(msgspec.Struct, tag="link", frozen=True):
    """The connection to the head. `lost` means that there was one; `refused` that this head cannot be used, and why."""

    phase: Phase
    attempt: int = 0
    detail: str = ""


class Options(msgspec.Struct, frozen=True):
    """How a prompt is sampled; the fields and the limits of `RingClient.generate`."""

    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] = 128
    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1 << 31)] = 0
    seed: Number | None = None
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=1000)]], Meta(max_length=16)] = []


class Asked(msgspec.Struct, tag="asked", frozen=True):
    """A prompt was sent. `stream` is the dashboard's own number for it."""

    stream: int
    prompt: str
    options: Options


class Grew(msgspec.Struct, tag="grew", frozen=True):
    """New tokens of a stream, and the text that became certain; `sequence` is the head's number for it, as in a LapRun."""

    stream: int
    sequence: int
    tokens: int
    text: str


class Ended(msgspec.Struct, tag="ended", frozen=True):
    """A stream has ended; if it failed, `code` is the head's word for why and `detail` the sentence."""

    stream: int
    outcome: Outcome
    code: str = ""
    detail: str = ""
    prompt_tokens: int | None = None
    seed: int | None = None
    timings: Timings | None = None


Message = Link | Asked | Grew | Ended | Status | Lap | Event
