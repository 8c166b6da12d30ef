"""Every message that travels round the ring, as msgspec structs.

A message is one msgpack header (a tagged union of the structs below, decoded strictly) and, for `Forward`, one raw
tensor frame that the header describes. All of them go the same way round: head -> stage 0 -> ... -> last stage -> head.
What clients and the head say to each other is in `clients.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PROTOCOL = 1
"""Version of everything in this package. Nodes and clients of another version are refused by name."""

MAX_RUNS = 1024
MAX_TOKENS = 1 << 20

Count = Annotated[int, Meta(ge=0, le=1 << 31)]
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Text = Annotated[str, Meta(max_length=4096)]


class Sampling(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """How the token after a run is drawn. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 keep every token.

    The draw is keyed by (`seed`, position) alone: the same request gives the same tokens on any ring, at any time.
    """

    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Count = 0
    seed: Number = 0


class Run(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """`count` tokens of one sequence at positions `start`...: a prefill chunk or a decode step.

    `slot` is where every stage keeps the sequence's KV cache, which holds at most `reserve` tokens; a run with `start`
    0 opens it anew. `sampling` is None unless the token after the run is wanted; with `answers` more than 1, also those
    after that many tokens at its end, which are guesses to be checked.
    """

    slot: Count
    start: Count
    count: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    reserve: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    sampling: Sampling | None = None
    answers: Annotated[int, Meta(ge=1, le=MAX_RUNS)] = 1

    @property
    def answered(self) -> range:
        """Positions of the tokens that are wanted."""
        end = self.start + self.count + 1
        return range(end - self.answers, end) if self.sampling is not None else range(0)


class Hop(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A message's passage through one stage: nanoseconds on that machine's monotonic clock, and bytes received.

    Queue wait is `started - received`, compute is `finished - started`; from `finished` until the next stage's
    `received` the message is encoded, sent and on the wire (`sent` marks when it was handed to the socket).
    """

    stage: Count
    received: Number
    started: Number
    finished: Number
    sent: Number
    bytes: Count


class StageInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node says of itself in the Hello lap.

    `clock` names the clock that its hops are measured on (same value: same clock). `kv_tokens` is how many tokens of
    KV cache it can hold, `kv_token_bytes` what one costs there.
    """

    stage: Count
    stages: Count
    first_layer: Count
    end_layer: Count
    layers: Count
    fingerprint: Text
    dtype: Text
    host: Text
    pid: Count
    clock: Text
    version: Text
    listen: Text
    shard_bytes: Number
    kv_tokens: Number
    kv_token_bytes: Number
    threads: Count


class Health(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What changes on a node: resident memory in bytes, KV tokens in use, messages that it refused since it started."""

    stage: Count
    resident_bytes: Number
    kv_used: Number
    refused: Number


class Hello(msgspec.Struct, tag="hello", forbid_unknown_fields=True):
    """Forms the ring. On lap 1 every node checks the message against its shard, adds itself and sends it on; a node that
    sees a mismatch puts it into `problem` and sends that on instead. On lap 2 `stages` is complete: the ring has formed."""

    protocol: int
    epoch: Number
    fingerprint: Text
    lap: Literal[1, 2] = 1
    stages: Annotated[list[StageInfo], Meta(max_length=1024)] = []
    problem: Text | None = None


class Forward(msgspec.Struct, tag="forward", forbid_unknown_fields=True):
    """One microbatch on its way through the layers; a frame with its input follows.

    The tensor has one row for every token, runs end to end: int64 token ids of shape (T,) for stage 0, hidden states
    of shape (T, hidden size) in the model's dtype for the others.
    """

    epoch: Number
    microbatch: Number
    runs: Annotated[list[Run], Meta(min_length=1, max_length=MAX_RUNS)]
    dtype: Literal["int64", "float32", "bfloat16", "float16"]
    shape: Annotated[list[Annotated[int, Meta(ge=1, le=MAX_TOKENS)]], Meta(min_length=1, max_length=2)]
    hops: Annotated[list[Hop], Meta(max_length=1024)] = []


class Sampled(msgspec.Struct, tag="sampled", forbid_unknown_fields=True):
    """The last stage's answer to a Forward: for each run with `sampling` its `answers` tokens, in order."""

    epoch: Number
    microbatch: Number
    tokens: Annotated[list[Count], Meta(max_length=MAX_RUNS)]
    hops: Annotated[list[Hop], Meta(max_length=1024)]


class Fault(msgspec.Struct, tag="fault", forbid_unknown_fields=True):
    """A stage could not compute this microbatch; its sequences end with `cause`."""

    epoch: Number
    microbatch: Number
    stage: Count
    cause: Text


class Release(msgspec.Struct, tag="release", forbid_unknown_fields=True):
    """These slots' KV caches are no longer needed. Travels in order with the Forwards, so a slot can be reused at once."""

    epoch: Number
    slots: Annotated[list[Count], Meta(max_length=MAX_RUNS)]


class Pulse(msgspec.Struct, tag="pulse", forbid_unknown_fields=True):
    """An empty lap, once a second: every stage adds its health."""

    epoch: Number
    stages: Annotated[list[Health], Meta(max_length=1024)] = []


class LinkDown(msgspec.Struct, tag="link_down", forbid_unknown_fields=True):
    """Stage `stage` lost the link from its predecessor; goes round the remaining arc to the head."""

    epoch: Number
    stage: Count


RingMessage = Hello | Forward | Sampled | Fault | Release | Pulse | LinkDown
