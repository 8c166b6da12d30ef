"""From a client's request to a stream that the scheduler knows, and to its one outcome."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from ring.head.drafts import Drafter
from ring.head.front import Front
from ring.head.scheduler import Busy, Scheduler, TooLong
from ring.head.sequence import Sequence
from ring.head.streams import Stream
from ring.head.text import TextStream
from ring.head.tokenizer import PromptTooLong, Vocabulary
from ring.wire.clients import Failed, FailureCode, FinishReason, Generate, Notice, StageTiming
from ring.wire.messages import Sampling


@dataclass(frozen=True, slots=True)
class Limits:
    """What the head accepts: tokens in a microbatch, sequences at once, requests waiting; for how many seconds a stream
    waits for a broken ring to heal; and whether it guesses ahead."""

    token_budget: int = 128
    max_running: int = 64
    max_waiting: int = 256
    recovery_timeout: float = 60.0
    speculate: bool = True


class Refused(Exception):
    """A request that is not taken; the message is one sentence."""

    def __init__(self, code: FailureCode, why: str) -> None:
        super().__init__(why)
        self.code = code


class Requests:
    """The streams that are live, by their sequence's number. Each ends in exactly one way: finished, failed or dropped."""

    def __init__(self, front: Front, vocabulary: Vocabulary, scheduler: Scheduler, limits: Limits) -> None:
        self.front = front
        self.vocabulary = vocabulary
        self.scheduler = scheduler
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        self.stages = 0
        self.draining = False
        self.finished = self.failed = 0
        self._next_sequence = 1

    def generate(self, client: bytes, message: Generate) -> None:
        """Take a request, or answer why not."""
        try:
            stream = self._open(client, message)
            if ended := stream.resume(message.generated):  # its head was lost between its last token and its end
                self.finished += 1
                self.front.reply(client, stream.finish(ended))
                return
            self._admit(stream)
        except Refused as refusal:
            self.failed += 1
            self.front.reply(client, Failed(message.request, refusal.code, str(refusal)))
            self.front.tell("warning", -1, f"a request was refused: {refusal}")

    def _open(self, client: bytes, message: Generate) -> Stream:
        """The stream of a request that is in order."""
        if self.draining and not message.generated:
            raise Refused("draining", "the ring is being drained and takes no new requests")
        try:
            prompt = self.vocabulary.prompt_ids(message.prompt, message.token_ids, message.messages)
        except PromptTooLong as error:
            raise Refused("too_long", str(error)) from None
        except ValueError as error:
            raise Refused("bad_request", str(error)) from None
        if max(message.generated, default=0) >= self.vocabulary.size or len(message.generated) > message.max_tokens:
            raise Refused("bad_request", "these generated tokens cannot be this request's")
        context = self.vocabulary.context
        if len(prompt) >= context:
            why = f"the prompt has {len(prompt)} tokens; this model's context is {context}, with the answer"
            raise Refused("too_long", why)
        room = min(context - len(prompt), max(1, self.scheduler.kv_tokens + 1 - len(prompt)))
        seed = secrets.randbits(63) if message.seed is None else message.seed
        sampling = Sampling(message.temperature, message.top_p, message.top_k, seed, message.logprobs)
        drafter = Drafter() if self.limits.speculate else None
        sequence = Sequence(self._next_sequence, prompt, min(message.max_tokens, room), sampling, drafter=drafter)
        text = TextStream(self.vocabulary.tokenizer, prompt, message.stop)
        eos = frozenset() if message.ignore_eos else self.vocabulary.eos
        return Stream(client, message.request, sequence, text, eos, [StageTiming(stage) for stage in range(self.stages)])

    def _admit(self, stream: Stream) -> None:
        """Give a stream to the scheduler."""
        try:
            self.scheduler.add(stream.sequence)
        except Busy as error:
            raise Refused("busy", f"the ring is busy: {error}; try again later") from None
        except TooLong as error:
            raise Refused("too_long", f"{error}; shorten the prompt or give the nodes more --kv-memory") from None
        self._next_sequence += 1
        self.streams[stream.sequence.number] = stream

    def formed(self, stages: int) -> None:
        """The ring has formed, with so many stages; streams that came before have timings for them from now on."""
        self.stages = stages
        for stream in self.streams.values():
            stream.stages = stream.stages or [StageTiming(stage) for stage in range(stages)]

    def cancel(self, client: bytes, request: int) -> None:
        """End a client's stream."""
        for stream in list(self.streams.values()):
            if (stream.client, stream.request) == (client, request):
                self.finish(stream, "cancelled")

    def notify(self, message: str) -> None:
        """Tell the client of every stream."""
        for stream in list(self.streams.values()):
            if not self.front.reply(stream.client, Notice(stream.request, message)):
                self.drop(stream)

    def finish(self, stream: Stream, reason: FinishReason) -> None:
        """It has ended well, or was cancelled."""
        self._forget(stream)
        self.finished += 1
        self.front.reply(stream.client, stream.finish(reason))

    def fail(self, stream: Stream, why: str) -> None:
        """A stage could not go on with it."""
        self._forget(stream)
        self.failed += 1
        self.front.reply(stream.client, Failed(stream.request, "stage_failed", why))
        self.front.tell("error", -1, f"request #{stream.sequence.number} failed: {why}")

    def drop(self, stream: Stream) -> None:
        """Its client has gone, or does not read: free what it held."""
        self._forget(stream)
        self.failed += 1
        number = stream.sequence.number
        self.front.tell("warning", -1, f"request #{number} was dropped: its client is gone or does not read")

    def _forget(self, stream: Stream) -> None:
        del self.streams[stream.sequence.number]
        self.scheduler.remove(stream.sequence)
