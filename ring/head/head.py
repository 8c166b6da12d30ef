"""The head: clients on one side, the ring on the other, the scheduler between them.

One thread, one poll loop, no waiting anywhere else: it never blocks on a client or on the ring.
"""

from __future__ import annotations

import queue
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import torch
import zmq

from ring.head.forming import Formation
from ring.head.laps import LapClock
from ring.head.scheduler import Busy, Scheduler, TooLong
from ring.head.sequence import Sequence
from ring.head.streams import Stream
from ring.head.text import TextStream
from ring.head.tokenizer import Vocabulary
from ring.wire import clients
from ring.wire.clients import (
    Cancel,
    Event,
    Failed,
    FailureCode,
    FinishReason,
    Generate,
    GetStatus,
    HeadMessage,
    Lap,
    LapRun,
    StageStatus,
    StageTiming,
    Status,
    Watch,
)
from ring.wire.frames import Arrived
from ring.wire.links import RingReceiver
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
)

PULSE_S = 1.0
RATE_WINDOW_S = 10.0
GIVE_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the head accepts: tokens in a microbatch, sequences at once, requests waiting."""

    token_budget: int = 128
    max_running: int = 64
    max_waiting: int = 256


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
        to_ring: queue.SimpleQueue[Arrived | None],
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
        self.health: dict[int, Health] = {}
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
        """The poll loop; ends with the exception of a signal handler."""
        poller = zmq.Poller()
        for socket in (self.from_ring.socket, self.from_ring.monitor, self.router):
            poller.register(socket, zmq.POLLIN)
        while True:
            self._tick()
            poller.poll(self._patience_ms())
            while arrived := self.from_ring.receive():
                self.from_the_ring(arrived)
            if self.from_ring.lost_peer():
                self._broken(self.info.stages - 1, "the last stage is gone")
            self._hear_clients()
            self._dispatch()

    def _patience_ms(self) -> int:
        return 100 if self.formation.state != "ready" else max(1, int(1000 * (self._next_pulse - time.monotonic())))

    def _tick(self) -> None:
        """What time brings: the next Hello while forming, a pulse once a second when formed."""
        now = time.monotonic()
        if self.formation.state != "ready":
            if hello := self.formation.hello_due(now):
                self._send(hello)
            if self.streams and now - self._broken_at > GIVE_UP_S:
                why = f"the ring has not formed for {GIVE_UP_S:.0f} s: {self.formation.detail}"
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
        elif isinstance(message, LinkDown):
            self._broken(message.stage, f"stage {message.stage} lost the node before it")
        elif message.epoch != self.formation.epoch or self.formation.state != "ready":
            return
        elif isinstance(message, Sampled):
            self._sampled(message, arrived.received)
        elif isinstance(message, Fault):
            self._fault(message)
        elif isinstance(message, Pulse):
            self.health = {health.stage: health for health in message.stages}

    def _hello(self, hello: Hello) -> None:
        before = (self.formation.state, self.formation.detail)
        if second := self.formation.returned(hello):
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
        self.scheduler.stages, self.scheduler.kv_tokens = len(stages), capacity
        self.lap_clock = LapClock([self.info.clock, *(stage.clock for stage in stages)])
        for stream in self.streams.values():
            stream.stages = stream.stages or [StageTiming(k) for k in range(len(stages))]
        self._next_pulse = 0.0
        hosts = " -> ".join(f"{s.stage}:{s.host}" for s in stages)
        self._announce("info", -1, f"the ring has formed: {len(stages)} stages ({hosts}), {capacity} tokens of KV cache")

    def _broken(self, stage: int, detail: str) -> None:
        """A node is gone. What was in flight is lost; every live sequence will be replayed when the ring has re-formed."""
        if self.formation.state != "ready":
            return
        self.formation.broken(detail)
        self._broken_at = time.monotonic()
        self._dispatched.clear()
        self.scheduler.rewind()
        self.health = {}
        self._announce("warning", stage, f"{detail}; {len(self.streams)} streams wait for it to return")

    def _sampled(self, message: Sampled, returned: int) -> None:
        microbatch = self.scheduler.in_flight.get(message.microbatch)
        if microbatch is None:
            return
        started = self._dispatched.pop(message.microbatch)
        duration, hops = self.lap_clock.measure(started, message.hops, returned)
        for sequence, _ in microbatch.parts:
            if stream := self.streams.get(sequence.number):
                stream.lap(started, hops)
        runs = [LapRun(s.number, r.start, r.count, r.start < len(s.prompt)) for s, r in microbatch.parts]
        fresh = self.scheduler.complete(message.microbatch, message.tokens)
        self._count(len(fresh))
        for sequence, token in fresh:
            stream = self.streams[sequence.number]
            tokens, reason = stream.push(token)
            if not self._reply(stream.client, tokens):
                self._drop(stream)
            elif reason:
                self._finish(stream, reason)
        for client, request in list(self.watchers.items()):
            lap = Lap(request, message.microbatch, message.epoch, started, duration, hops, runs)
            self._reply(client, lap)

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
        elif isinstance(message, Watch):
            if message.on:
                self.watchers[client] = message.request
            else:
                self.watchers.pop(client, None)

    def _generate(self, client: bytes, message: Generate) -> None:
        def refuse(code: FailureCode, why: str) -> None:
            self.failed += 1
            self._reply(client, Failed(message.request, code, why))
            self._tell_watchers("warning", -1, f"a request was refused: {why}")

        try:
            prompt = self.vocabulary.prompt_ids(message.prompt, message.token_ids)
        except ValueError as error:
            return refuse("bad_request", str(error))
        room = self.vocabulary.context - len(prompt)
        if room < 1:
            limit = self.vocabulary.context
            return refuse("too_long", f"the prompt has {len(prompt)} tokens; this model's context is {limit}, with the answer")
        seed = secrets.randbits(63) if message.seed is None else message.seed
        sampling = Sampling(message.temperature, message.top_p, message.top_k, seed)
        sequence = Sequence(self._next_sequence, prompt, min(message.max_tokens, room), sampling)
        text = TextStream(self.vocabulary.tokenizer, prompt, message.stop)
        try:
            self.scheduler.add(sequence)
        except Busy as error:
            return refuse("busy", f"the ring is busy: {error}; try again later")
        except TooLong as error:
            return refuse("too_long", f"{error}; ask for fewer tokens or give the nodes more --kv-memory")
        self._next_sequence += 1
        eos = frozenset() if message.ignore_eos else self.vocabulary.eos
        timings = [StageTiming(stage) for stage in range(len(self.formation.stages))]
        self.streams[sequence.number] = Stream(client, message.request, sequence, text, eos, timings)

    def _finish(self, stream: Stream, reason: FinishReason) -> None:
        self._forget(stream)
        self.finished += 1
        self._reply(stream.client, stream.finish(reason))

    def _fail(self, stream: Stream, code: FailureCode, why: str) -> None:
        self._forget(stream)
        self.failed += 1
        self._reply(stream.client, Failed(stream.request, code, why))
        self._tell_watchers("error", -1, f"request #{stream.sequence.number} failed: {why}")

    def _drop(self, stream: Stream) -> None:
        """Its client has gone, or does not read: free what it held."""
        self._forget(stream)
        self.failed += 1
        self._tell_watchers(
            "warning", -1, f"request #{stream.sequence.number} was dropped: its client is gone or does not read"
        )

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
        self._tell_watchers(severity, stage, message)

    def _tell_watchers(self, severity: clients.Severity, stage: int, message: str) -> None:
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
            health = self.health.get(info.stage, Health(info.stage, 0, 0, 0))
            stages.append(StageStatus(info, health.resident_bytes, health.kv_used, health.refused))
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
        )
