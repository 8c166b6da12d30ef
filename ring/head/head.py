"""The head: clients on one side, the ring on the other, the scheduler between them.

One thread, one poll loop, no waiting anywhere else: it never blocks on a client or on the ring.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import torch
import zmq

from ring.head.drafts import Drafter
from ring.head.forming import Formation
from ring.head.laps import LapClock
from ring.head.pace import Pace
from ring.head.scheduler import Busy, Microbatch, Scheduler, TooLong
from ring.head.sequence import Sequence
from ring.head.spares import Spares
from ring.head.streams import Stream
from ring.head.text import TextStream
from ring.head.tokenizer import Vocabulary
from ring.wire import clients
from ring.wire.clients import (
    Cancel,
    Drain,
    Event,
    Failed,
    FailureCode,
    FinishReason,
    Generate,
    GetStatus,
    HeadMessage,
    Lap,
    LapHop,
    LapRun,
    Notice,
    StageStatus,
    StageTiming,
    Status,
    Watch,
)
from ring.wire.frames import Arrived
from ring.wire.links import Arrivals, RingReceiver
from ring.wire.messages import (
    PROTOCOL,
    Fault,
    Forward,
    Health,
    Hello,
    LinkDown,
    Pulse,
    Release,
    RingMessage,
    Sampled,
    Sampling,
    StageInfo,
    Standby,
)

PULSE_S = 1.0
RATE_WINDOW_S = 10.0
GRACE_S = 60.0
"""How long a head that was asked to stop lets its streams finish."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the head accepts: tokens in a microbatch, sequences at once, requests waiting; for how many seconds a stream
    waits for a broken ring to heal; and whether it guesses ahead."""

    token_budget: int = 128
    max_running: int = 64
    max_waiting: int = 256
    recovery_timeout: float = 60.0
    speculate: bool = True


class Head:
    """Serves clients until interrupted.

    Args:
        info: stage 0's own entry in the Hello lap.
        vocabulary: the tokenizer and what else of the model faces clients.
        to_ring: the queue of stage 0's loop.
        from_ring: where the last stage delivers.
        router: the bound ROUTER socket of clients.
        limits: see `Limits`.
        say: prints a line for whoever started the node.
    """

    def __init__(
        self,
        info: StageInfo,
        vocabulary: Vocabulary,
        to_ring: Arrivals,
        from_ring: RingReceiver,
        router: zmq.Socket[bytes],
        limits: Limits,
        say: Callable[[str], None],
    ) -> None:
        self.info = info
        self.vocabulary = vocabulary
        self.to_ring = to_ring
        self.from_ring = from_ring
        self.router = router
        self.limits = limits
        self.say = say
        self.formation = Formation(info.fingerprint)
        self.scheduler = self._new_scheduler(info.stages, info.kv_tokens)
        self.lap_clock = LapClock([info.clock])
        self.streams: dict[int, Stream] = {}
        self.watchers: dict[bytes, int] = {}
        self.health: dict[int, tuple[Health, float]] = {}
        self.spares = Spares()
        self.draining = False
        self.stale = 0
        self._stop_at: float | None = None
        self.finished = self.failed = 0
        self._next_sequence = 1
        self._started = self._broken_at = time.monotonic()
        self._next_pulse = 0.0
        self._recent: deque[tuple[float, int]] = deque()
        self._dispatched: dict[int, int] = {}

    def _new_scheduler(self, stages: int, kv_tokens: int) -> Scheduler:
        limits = self.limits
        return Scheduler(stages, kv_tokens, limits.token_budget, limits.max_running, limits.max_waiting)

    def run(self) -> None:
        """The poll loop; ends with the exception of a signal handler, or once `finish_streams` has been called and none is
        left."""
        poller = zmq.Poller()
        for socket in (self.from_ring.socket, self.from_ring.monitor, self.router):
            poller.register(socket, zmq.POLLIN)
        while self._stop_at is None or (self.streams and time.monotonic() < self._stop_at):
            self._tick()
            poller.poll(self._patience_ms())
            while arrived := self.from_ring.receive():
                self.from_the_ring(arrived)
            if self.from_ring.lost_peer():
                self._broken(self.info.stages - 1)
            self._hear_clients()
            self._dispatch()

    def _patience_ms(self) -> int:
        return 100 if self.formation.state != "ready" else max(1, int(1000 * (self._next_pulse - time.monotonic())))

    def _tick(self) -> None:
        """What time brings: the next Hello while forming, a pulse once a second when formed."""
        now = time.monotonic()
        if self.formation.state != "ready":
            if hello := self.formation.hello_due(now):
                hello.routes = self.spares.choose(now)
                self._send(hello)
            if self.streams and now - self._broken_at > self.limits.recovery_timeout:
                why = f"the ring has not formed for {self.limits.recovery_timeout:.0f} s: {self.formation.detail}"
                for stream in list(self.streams.values()):
                    self._fail(stream, "stage_failed", why)
        elif now >= self._next_pulse:
            self._next_pulse = now + PULSE_S
            self._send(Pulse(self.formation.epoch))

    # ---- the ring ----

    def _send(self, message: RingMessage, tensor: torch.Tensor | None = None) -> None:
        """Give stage 0 a message. It sits in this process, so nothing is encoded; bytes count what encoding would carry."""
        size = tensor.nbytes if tensor is not None else 0
        self.to_ring.put(Arrived(message, tensor, time.monotonic_ns(), size))

    def from_the_ring(self, arrived: Arrived) -> None:
        """Handle a message that has come round."""
        message = arrived.message
        if isinstance(message, Hello):
            self._hello(message)
        elif isinstance(message, Standby):
            self._standby(message.info)
        elif message.epoch != self.formation.epoch or message.sender != self.from_ring.predecessor:
            self.stale += 1
        elif self.formation.state != "ready":
            return
        elif isinstance(message, LinkDown):
            self._broken(message.stage - 1)
        elif isinstance(message, Sampled):
            self._sampled(message, arrived.received)
        elif isinstance(message, Fault):
            self._fault(message)
        elif isinstance(message, Pulse):
            now = time.time()
            self.health = {health.stage: (health, health.time_ns / 1e9 - now) for health in message.stages}

    def _standby(self, info: StageInfo) -> None:
        if info.fingerprint != self.info.fingerprint or info.stages != self.info.stages:
            return
        if self.spares.announced(info, time.monotonic()):
            self._announce("info", info.stage, f"a spare for stage {info.stage} waits on {info.host}")

    def _hello(self, hello: Hello) -> None:
        before = (self.formation.state, self.formation.detail)
        if second := self.formation.returned(hello):
            self.from_ring.predecessor = second.stages[-1].incarnation
            self._send(second)
        state, detail = self.formation.state, self.formation.detail
        if (state, detail) == before:
            return
        if state == "mismatch":
            self._announce("error", -1, f"the ring cannot form: {detail}")
        elif state == "ready":
            self._formed()

    def _formed(self) -> None:
        stages = self.formation.stages
        capacity = min(stage.kv_tokens for stage in stages)
        self.scheduler.kv_tokens = capacity
        self.scheduler.pace = Pace(len(stages), shared=len({stage.clock for stage in stages}) < len(stages))
        self.lap_clock = LapClock([self.info.clock, *(stage.clock for stage in stages)])
        self.spares.formed()
        for stream in self.streams.values():
            stream.stages = stream.stages or [StageTiming(k) for k in range(len(stages))]
        self._next_pulse = 0.0
        hosts = " -> ".join(f"{s.stage}:{s.host}" for s in stages)
        self._announce("info", -1, f"the ring has formed: {len(stages)} stages ({hosts}), {capacity} tokens of KV cache")
        self._notify("the ring has formed again; going on")

    def _broken(self, lost: int) -> None:
        """A node is gone. What was in flight is lost; every live sequence will be replayed when the ring has re-formed."""
        if self.formation.state != "ready":
            return
        info = self.formation.stages[lost]
        detail = f"stage {lost} ({info.host}, layers {info.first_layer}-{info.end_layer - 1}) is gone or cut off"
        self.formation.broken(detail)
        self._broken_at = time.monotonic()
        self.spares.lost(lost, self._broken_at)
        self._dispatched.clear()
        self.scheduler.rewind()
        self.health = {}
        self._announce("warning", lost, f"{detail}; {len(self.streams)} streams wait for it to return")
        self._notify(f"{detail}; waiting for it to return")

    def _notify(self, message: str) -> None:
        """Tell every running stream's client."""
        for stream in list(self.streams.values()):
            if not self._reply(stream.client, Notice(stream.request, message)):
                self._drop(stream)

    def _sampled(self, message: Sampled, returned: int) -> None:
        microbatch = self.scheduler.in_flight.get(message.microbatch)
        if microbatch is None or not self._fits(message, microbatch):
            self.stale += 1
            return
        started = self._dispatched.pop(message.microbatch)
        duration, hops = self.lap_clock.measure(started, message.hops, returned)
        observe(self.scheduler.pace, microbatch, duration, hops)
        for sequence, _ in microbatch.parts:
            if stream := self.streams.get(sequence.number):
                stream.lap(started, hops)
        runs = [LapRun(s.number, r.start, r.count, r.start < len(s.prompt)) for s, r in microbatch.parts]
        fresh = self.scheduler.complete(message.microbatch, message.tokens)
        self._count(len(fresh))
        for sequence, token, row in fresh:
            stream = self.streams.get(sequence.number)
            if stream is None:  # an earlier token of this lap was its last
                continue
            if token is None:
                self._fail(stream, "stage_failed", f"stage {self.info.stages - 1} failed: the logits are not finite")
                continue
            tokens, reason = stream.push(token)
            if sequence.sampling.logprobs is not None:
                tokens.logprobs = [self.vocabulary.spell(message.logprobs[row])]
            if not self._reply(stream.client, tokens):
                self._drop(stream)
            elif reason:
                self._finish(stream, reason)
        for client, request in list(self.watchers.items()):
            lap = Lap(request, message.microbatch, message.epoch, started, duration, hops, runs)
            self._reply(client, lap)

    def _fits(self, message: Sampled, microbatch: Microbatch) -> bool:
        """Whether an answer is one that this ring could give: a token for each sampled run, a hop for each stage."""
        wanted = sum(len(run.answered) for _, run in microbatch.parts)
        asked = any(run.sampling is not None and run.sampling.logprobs is not None for _, run in microbatch.parts)
        stages = [hop.stage for hop in message.hops]
        known = all(token is None or token < self.vocabulary.size for token in message.tokens)
        known = known and len(message.logprobs) == (wanted if asked else 0)
        return known and len(message.tokens) == wanted and stages == list(range(len(self.formation.stages)))

    def _fault(self, fault: Fault) -> None:
        if fault.microbatch not in self.scheduler.in_flight:
            return
        self._dispatched.pop(fault.microbatch, None)
        hit = self.scheduler.fail(fault.microbatch)
        self._announce("error", fault.stage, f"a microbatch of {len(hit)} sequences failed: {fault.cause}")
        for sequence in hit:
            self._fail(self.streams[sequence.number], "stage_failed", f"stage {fault.stage} failed: {fault.cause}")

    def _dispatch(self) -> None:
        """Fill the ring: free what is no longer needed, then send microbatches while the scheduler has any."""
        if self.formation.state != "ready":
            return
        if released := self.scheduler.take_released():
            self._send(Release(self.formation.epoch, released))
        while microbatch := self.scheduler.next_microbatch():
            tokens = torch.tensor(microbatch.token_ids(), dtype=torch.int64)
            self._dispatched[microbatch.number] = time.monotonic_ns()
            runs = [run for _, run in microbatch.parts]
            self._send(Forward(self.formation.epoch, microbatch.number, runs, "int64", [len(tokens)]), tokens)

    # ---- clients ----

    def _hear_clients(self) -> None:
        while True:
            try:
                client, *frames = self.router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = clients.client_decoder.decode(frames[0]) if len(frames) == 1 else None
            except (msgspec.DecodeError, ValueError, RecursionError):
                message = None
            if message is None:
                self._refuse(client, frames)
            else:
                self.from_client(client, message)

    def _refuse(self, client: bytes, frames: list[bytes]) -> None:
        """Answer what is not a message of this protocol, if it at least says which request it is."""
        try:
            raw = msgspec.msgpack.decode(frames[0])
            request = int(raw["request"])
            clients.client_decoder.decode(frames[0])
        except msgspec.ValidationError as error:
            self._reply(client, Failed(request, "bad_request", f"the head refused the request: {error}"))
        except Exception:  # a stranger's bytes: there is nobody to answer
            self.from_ring.refused += 1

    def from_client(self, client: bytes, message: clients.ClientMessage) -> None:
        """Handle one client message."""
        if isinstance(message, Generate):
            self._generate(client, message)
        elif isinstance(message, Cancel):
            for stream in list(self.streams.values()):
                if stream.client == client and stream.request == message.request:
                    self._finish(stream, "cancelled")
        elif isinstance(message, GetStatus):
            self._reply(client, self.status(message.request))
        elif isinstance(message, Drain):
            self.drain(message.on)
            self._reply(client, self.status(message.request))
        elif isinstance(message, Watch):
            if message.on:
                self.watchers[client] = message.request
            else:
                self.watchers.pop(client, None)

    def drain(self, on: bool) -> None:
        """Take no more requests, or take them again."""
        if on != self.draining:
            self.draining = on
            self._announce("info", -1, f"draining: {len(self.streams)} streams to finish" if on else "no longer draining")

    def finish_streams(self) -> bool:
        """Stop as soon as no stream is left, or after a grace period; returns whether there is any to wait for."""
        self.drain(True)
        self._stop_at = time.monotonic() + GRACE_S
        return bool(self.streams)

    def _generate(self, client: bytes, message: Generate) -> None:
        def refuse(code: FailureCode, why: str) -> None:
            self.failed += 1
            self._reply(client, Failed(message.request, code, why))

        if self.draining and not message.generated:
            return refuse("draining", "the ring is being drained and takes no new requests")
        try:
            prompt = self.vocabulary.prompt_ids(message.prompt, message.token_ids, message.messages)
        except ValueError as error:
            return refuse("bad_request", str(error))
        if max(message.generated, default=0) >= self.vocabulary.size or len(message.generated) > message.max_tokens:
            return refuse("bad_request", "these generated tokens cannot be this request's")
        room = self.vocabulary.context - len(prompt)
        if room < 1:
            limit = self.vocabulary.context
            return refuse("too_long", f"the prompt has {len(prompt)} tokens; this model's context is {limit}, with the answer")
        seed = secrets.randbits(63) if message.seed is None else message.seed
        sampling = Sampling(message.temperature, message.top_p, message.top_k, seed, message.logprobs)
        room = min(room, max(1, self.scheduler.kv_tokens + 1 - len(prompt)))
        drafter = Drafter() if self.limits.speculate else None
        sequence = Sequence(self._next_sequence, prompt, min(message.max_tokens, room), sampling, drafter=drafter)
        text = TextStream(self.vocabulary.tokenizer, prompt, message.stop)
        eos = frozenset() if message.ignore_eos else self.vocabulary.eos
        timings = [StageTiming(stage) for stage in range(len(self.formation.stages))]
        stream = Stream(client, message.request, sequence, text, eos, timings)
        if ended := stream.resume(message.generated):
            self.finished += 1
            self._reply(client, stream.finish(ended))
            return
        try:
            self.scheduler.add(sequence)
        except Busy as error:
            return refuse("busy", f"the ring is busy: {error}; try again later")
        except TooLong as error:
            return refuse("too_long", f"{error}; shorten the prompt or give the nodes more --kv-memory")
        self._next_sequence += 1
        self.streams[sequence.number] = stream

    def _finish(self, stream: Stream, reason: FinishReason) -> None:
        self._forget(stream)
        self.finished += 1
        self._reply(stream.client, stream.finish(reason))

    def _fail(self, stream: Stream, code: FailureCode, why: str) -> None:
        self._forget(stream)
        self.failed += 1
        self._reply(stream.client, Failed(stream.request, code, why))

    def _drop(self, stream: Stream) -> None:
        """Its client has gone, or does not read: free what it held."""
        self._forget(stream)
        self.failed += 1

    def _forget(self, stream: Stream) -> None:
        del self.streams[stream.sequence.number]
        self.scheduler.remove(stream.sequence)

    def _reply(self, client: bytes, message: HeadMessage) -> bool:
        """Send to a client without waiting; False if it is gone or does not keep up."""
        try:
            self.router.send_multipart([client, clients.encoder.encode(message)], zmq.NOBLOCK)
        except zmq.Again:
            return isinstance(message, Lap | Event)  # a slow watcher loses samples, nothing else
        except zmq.ZMQError:
            self.watchers.pop(client, None)
            return False
        return True

    def _announce(self, severity: clients.Severity, stage: int, message: str) -> None:
        self.say(message)
        for client, request in list(self.watchers.items()):
            self._reply(client, Event(request, time.time(), severity, stage, message))

    def _count(self, tokens: int) -> None:
        """Note new tokens, and forget those that have left the window."""
        now = time.monotonic()
        if tokens:
            self._recent.append((now, tokens))
        while self._recent and self._recent[0][0] < now - RATE_WINDOW_S:
            self._recent.popleft()

    def status(self, request: int) -> Status:
        """The ring at this moment."""
        now = time.monotonic()
        self._count(0)
        span = min(RATE_WINDOW_S, now - self._started)
        stages = []
        for info in self.formation.stages:
            health, clock = self.health.get(info.stage, (Health(info.stage, 0, 0, 0, 0, 0), 0.0))
            figures = (health.resident_bytes, health.available_bytes, health.kv_used, health.refused)
            stages.append(StageStatus(info, *figures, clock))
        return Status(
            request=request,
            protocol=PROTOCOL,
            model=self.vocabulary.name,
            dtype=self.info.dtype,
            state=self.formation.state,
            detail=self.formation.detail,
            epoch=self.formation.epoch,
            stages=stages,
            context=self.vocabulary.context,
            kv_tokens=self.scheduler.kv_tokens,
            kv_used=self.scheduler.kv_reserved,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            in_flight=len(self.scheduler.in_flight),
            tokens_per_s=sum(count for _, count in self._recent) / span if span else 0.0,
            finished=self.finished,
            failed=self.failed,
            uptime_s=now - self._started,
            draining=self.draining,
            spares=[stage for stage in range(self.info.stages) if self.spares.alive(stage, now)],
            stale=self.stale,
        )


def observe(pace: Pace, microbatch: Microbatch, duration: int, hops: list[LapHop]) -> None:
    """Tell the pace what a lap has cost."""
    computes = [hop.compute_ns / 1e9 for hop in hops]
    moving = sum(hop.send_ns + hop.wire_ns for hop in hops) / 1e9
    tokens = sum(run.count for _, run in microbatch.parts)
    prefill = microbatch.decodes < len(microbatch.parts)
    pace.observe(tokens, microbatch.decoding, microbatch.groups, prefill, duration / 1e9, computes, moving)
