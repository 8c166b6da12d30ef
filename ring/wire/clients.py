"""What clients and the head say to each other, over one DEALER/ROUTER connection, and the figures that they share.

Every message is one msgpack frame. A client numbers its requests; every reply names the request that it answers.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ring.wire.messages import MAX_LOGPROBS, PROTOCOL, Count, Number, StageInfo

DEFAULT_HEAD = "tcp://127.0.0.1:5555"
MAX_REQUEST = 16 << 20

Request = Annotated[int, Meta(ge=0, lt=1 << 53)]
TokenIds = Annotated[list[Count], Meta(max_length=1 << 20)]
FinishReason = Literal["stop", "length", "cancelled"]
FailureCode = Literal["busy", "too_long", "bad_request", "stage_failed", "draining"]
State = Literal["forming", "mismatch", "ready"]
Severity = Literal["info", "warning", "error"]


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One turn of a chat, for the model's chat template: `role` is `system`, `user`, `assistant` or what else it knows."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str


class Generate(msgspec.Struct, tag="generate", forbid_unknown_fields=True):
    """Continue a prompt, given as text, as token ids or as the messages of a chat. `seed` None picks one at random.

    `generated` are the tokens that the client has already, from a head that is gone: the answer goes on after them as if
    nothing had happened. They count towards `max_tokens`, and are not sent again. `logprobs` asks for each token's
    log-probability and those of that many likeliest tokens.
    """

    request: Request
    prompt: str | None = None
    token_ids: TokenIds | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] = 128
    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Count = 0
    seed: Number | None = None
    stop: Annotated[list[Annotated[str, Meta(min_length=1, max_length=1000)]], Meta(max_length=16)] = []
    ignore_eos: bool = False
    messages: Annotated[list[Message], Meta(max_length=10_000)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    generated: TokenIds = []


class Cancel(msgspec.Struct, tag="cancel", forbid_unknown_fields=True):
    """End a generation; it is answered by its Finished."""

    request: Request


class GetStatus(msgspec.Struct, tag="get_status", forbid_unknown_fields=True):
    """Ask for a Status. The protocol version lets the head name a mismatch."""

    request: Request
    protocol: int = PROTOCOL


class Drain(msgspec.Struct, tag="drain", forbid_unknown_fields=True):
    """Take no more requests, and let those that are there finish; or, with `on` false, take them again. Answered by a
    Status."""

    request: Request
    on: bool = True


class Watch(msgspec.Struct, tag="watch", forbid_unknown_fields=True):
    """From now on, or no longer, send a Lap for every finished microbatch and an Event for whatever happens."""

    request: Request
    on: bool = True


ClientMessage = Generate | Cancel | GetStatus | Drain | Watch


class StageTiming(msgspec.Struct, forbid_unknown_fields=True):
    """One stage's share of a generation: sums over the `laps` that the sequence took part in, seconds and bytes.

    `wire_s` is the time from the end of this stage's compute until the next one had the message.
    """

    stage: int
    laps: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    wire_s: float = 0.0
    bytes: int = 0


class Timings(msgspec.Struct, forbid_unknown_fields=True):
    """Where the time of a generation went, in seconds.

    `queued_s` is the wait for admission, `ttft_s` the time to first token (from arrival at the head), `itl_s` the mean
    inter-token latency (None with fewer than two tokens).
    """

    queued_s: float
    ttft_s: float | None
    itl_s: float | None
    total_s: float
    stages: list[StageTiming]


class Logprob(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A token and its natural log-probability; `raw` is what it adds to the text, which may be half a character."""

    token_id: int
    logprob: float
    raw: bytes


class Tokens(msgspec.Struct, tag="tokens", forbid_unknown_fields=True):
    """New tokens, and the text that is certain with them (a character may need several tokens).

    `sequence` is the head's number for the generation, the one in a `LapRun`. `logprobs`, if asked for, has a row for
    each token: its own, then those of the likeliest tokens.
    """

    request: int
    sequence: int
    token_ids: list[int]
    text: str
    logprobs: list[list[Logprob]] = []


class Finished(msgspec.Struct, tag="finished", forbid_unknown_fields=True):
    """The last message of a generation, with what text was still held back."""

    request: int
    sequence: int
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int
    timings: Timings


class Notice(msgspec.Struct, tag="notice", forbid_unknown_fields=True):
    """A generation pauses, or goes on again: what has happened to the ring, in one sentence."""

    request: int
    message: str


class Failed(msgspec.Struct, tag="failed", forbid_unknown_fields=True):
    """A request that could not be done; `message` is one sentence."""

    request: int
    code: FailureCode
    message: str


class StageStatus(msgspec.Struct, forbid_unknown_fields=True):
    """A stage as the head knows it, with what its last pulse said. `clock_s` is how far its wall clock is ahead of the
    head's, within half a lap."""

    info: StageInfo
    resident_bytes: int = 0
    available_bytes: int = 0
    kv_used: int = 0
    refused: int = 0
    clock_s: float = 0.0


class Status(msgspec.Struct, tag="status", forbid_unknown_fields=True):
    """The ring at this moment.

    `state` is `forming` (`detail` says what for), `mismatch` (`detail` names the node) or `ready`. `spares` names the
    stages that have a spare waiting, `missing` the stage that a broken ring lost. `stale` counts messages that came from
    an older ring or another node. KV figures are tokens on the smallest stage; `tokens_per_s` counts new tokens over the
    last ten seconds.
    """

    request: int
    protocol: int
    model: str
    dtype: str
    state: State
    detail: str
    epoch: int
    stages: list[StageStatus]
    context: int
    kv_tokens: int
    kv_used: int
    running: int
    waiting: int
    in_flight: int
    tokens_per_s: float
    finished: int
    failed: int
    uptime_s: float
    draining: bool = False
    spares: list[int] = []
    missing: int | None = None
    stale: int = 0


class LapHop(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One stage's part of a lap, in nanoseconds; the parts of all hops add up to the lap.

    `queue_ns` waited on arrival, `compute_ns` computed, `send_ns` encoded, `wire_ns` until the next stage (or, after
    the last, the head) had it. `bytes` is the size of the message that arrived at the stage.
    """

    stage: int
    queue_ns: int
    compute_ns: int
    send_ns: int
    wire_ns: int
    bytes: int


class LapRun(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One sequence's part of a microbatch: `sequence` is the head's number for it."""

    sequence: int
    start: int
    count: int
    prefill: bool


class Lap(msgspec.Struct, tag="lap", forbid_unknown_fields=True):
    """A microbatch that has come round, `started_ns` on the head's monotonic clock."""

    request: int
    microbatch: int
    epoch: int
    started_ns: int
    duration_ns: int
    hops: list[LapHop]
    runs: list[LapRun]


class Event(msgspec.Struct, tag="event", forbid_unknown_fields=True):
    """Something worth a line in a log: `at` is seconds since 1970, `stage` -1 where it concerns none."""

    request: int
    at: float
    severity: Severity
    stage: int
    message: str


HeadMessage = Tokens | Finished | Failed | Notice | Status | Lap | Event

encoder = msgspec.msgpack.Encoder()
client_decoder: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
head_decoder: msgspec.msgpack.Decoder[HeadMessage] = msgspec.msgpack.Decoder(HeadMessage)
