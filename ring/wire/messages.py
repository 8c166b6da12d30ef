"""Every message that travels round the ring, as msgspec structs.

A message is one msgpack header (a tagged union of the structs below, decoded strictly) and, for `Forward`, one raw
tensor frame that the header describes. All of them go the same way round: head -> stage 0 -> ... -> last stage -> head.
Each carries the `epoch` of the ring, which rises whenever the ring was broken and healed, and its `sender`, the
incarnation of the node that sent it last: what comes from an older ring or another node is dropped and counted.
What clients and the head say to each other is in `clients.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PROTOCOL = 3
"""Version of everything in this package. Nodes and clients of another version are refused by name."""

BLOCK = 8
"""Tokens of a prompt that attend together where they do not attend one by one (see `ring.stage.attention`). Prefill chunks end
between blocks, so that no sum depends on how a prompt was chunked."""
MAX_RUNS = 1024
MAX_TOKENS = 1 << 20
MAX_LOGPROBS = 20

Count = Annotated[int, Meta(ge=0, le=1 << 31)]
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Text = Annotated[str, Meta(max_length=4096)]
LogprobRow = Annotated[list[tuple[Count, float]], Meta(max_length=MAX_LOGPROBS + 1)]


class Sampling(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """How the token after a run is drawn. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 keep every token.

    The draw is keyed by (`seed`, position) alone: the same request gives the same tokens on any ring, at any time.
    `logprobs` asks for the token's log-probability and those of that many likeliest tokens; None for nothing.
    """

    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Count = 0
    seed: Number = 0
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None


class Run(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """`count` tokens of one sequence at positions `start`...: a prefill chunk or a decode step.

    `slot` is where every stage keeps the sequence's KV cache, which holds at most `reserve` tokens; a run with `start`
    0 opens it anew. `sampling` is None unless the token after the run is wanted; with `answers` more than 1, also those
    after that many tokens at its end, which are guesses to be checked.

    The first `prompt` tokens of the sequence may attend in blocks (see `BLOCK`), later ones each alone. So a token comes out
    the same to the bit whether it is decoded, checked as a guess or replayed after a failure.
    """

    slot: Count
    start: Count
    count: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    reserve: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    sampling: Sampling | None = None
    answers: Annotated[int, Meta(ge=1, le=MAX_RUNS)] = 1
    prompt: Count = 0

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Start and count of each group of tokens that attend together."""
        at, end = self.start, self.start + self.count
        pieces = []
        while at < end:
            after = min(end, self.prompt, (at // BLOCK + 1) * BLOCK) if at < self.prompt else at + 1
            pieces.append((at, after - at))
            at = after
        return pieces

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

    `incarnation` is another number each time the program starts. `clock` names the clock that its hops are measured on
    (same value: same clock). `kv_tokens` is how many tokens of
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
    incarnation: Number
    clock: Text
    version: Text
    listen: Text
    shard_bytes: Number
    kv_tokens: Number
    kv_token_bytes: Number
    threads: Count


class Health(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What changes on a node: resident and available memory in bytes, KV tokens in use, messages that it refused since it
    started, and its wall clock in nanoseconds since 1970."""

    stage: Count
    resident_bytes: Number
    available_bytes: Number
    kv_used: Number
    refused: Number
    time_ns: Number


class Hello(msgspec.Struct, tag="hello", forbid_unknown_fields=True):
    """Forms the ring. On lap 1 every node checks the message against its shard, adds itself and sends it on; a node that
    sees a mismatch puts it into `problem` and sends that on instead. On lap 2 `stages` is complete: the ring has formed.

    `routes` says where a stage is found that is not where its predecessor's `--next` says: a spare in its place.
    `floor` becomes the highest epoch that any node has seen, so that a head whose clock went back can pass it.
    """

    protocol: int
    epoch: Number
    fingerprint: Text
    lap: Literal[1, 2] = 1
    stages: Annotated[list[StageInfo], Meta(max_length=1024)] = []
    problem: Text | None = None
    floor: Number = 0
    routes: Annotated[dict[Count, Text], Meta(max_length=1024)] = {}
    sender: Number = 0


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
    sender: Number = 0


class Sampled(msgspec.Struct, tag="sampled", forbid_unknown_fields=True):
    """The last stage's answer to a Forward: for each run with `sampling` its `answers` tokens, in order; None where the
    logits were not finite.

    `logprobs` is empty when no run asks for any; else it has a row for each token: (token id, log-probability) of the
    token itself, then of the likeliest ones; empty where the run asks for none.
    """

    epoch: Number
    microbatch: Number
    tokens: Annotated[list[Count | None], Meta(max_length=MAX_RUNS)]
    hops: Annotated[list[Hop], Meta(max_length=1024)]
    logprobs: Annotated[list[LogprobRow], Meta(max_length=MAX_RUNS)] = []
    sender: Number = 0


class Fault(msgspec.Struct, tag="fault", forbid_unknown_fields=True):
    """A stage could not compute this microbatch; its sequences end with `cause`.

    Later runs of theirs may be on their way already, among those of others. So every stage from there on gives up the
    slots of `runs`: it takes such a run as it comes and computes nothing of worth from it.
    """

    epoch: Number
    microbatch: Number
    stage: Count
    cause: Text
    runs: Annotated[list[Run], Meta(max_length=MAX_RUNS)]
    sender: Number = 0


class Release(msgspec.Struct, tag="release", forbid_unknown_fields=True):
    """These slots' KV caches are no longer needed. Travels in order with the Forwards, so a slot can be reused at once."""

    epoch: Number
    slots: Annotated[list[Count], Meta(max_length=MAX_RUNS)]
    sender: Number = 0


class Pulse(msgspec.Struct, tag="pulse", forbid_unknown_fields=True):
    """An empty lap, once a second: every stage adds its health."""

    epoch: Number
    stages: Annotated[list[Health], Meta(max_length=1024)] = []
    sender: Number = 0


class LinkDown(msgspec.Struct, tag="link_down", forbid_unknown_fields=True):
    """Stage `stage` lost the link from its predecessor; goes round the remaining arc to the head."""

    epoch: Number
    stage: Count
    sender: Number = 0


class Standby(msgspec.Struct, tag="standby", forbid_unknown_fields=True):
    """A spare says that it is there, once a second, to the node after the stage that it backs; goes on to the head."""

    info: StageInfo
    sender: Number = 0


RingMessage = Hello | Forward | Sampled | Fault | Release | Pulse | LinkDown | Standby
