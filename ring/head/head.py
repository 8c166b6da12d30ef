"""The head: clients on one side, the ring on the other, the scheduler between them.

One thread, one poll loop, no waiting anywhere else: it never blocks on a client or on the ring.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import torch
import zmq

from ring.head.forming import Formation
from ring.head.front import Front
from ring.head.laps import LapClock
from ring.head.pace import Pace
from ring.head.requests import Limits, Requests
from ring.head.scheduler import Fresh, Microbatch, Scheduler
from ring.head.spares import Spares
from ring.head.streams import Stream
from ring.head.tokenizer import Vocabulary
from ring.wire import clients
from ring.wire.clients import (
    Cancel,
    Drain,
    FinishReason,
    Generate,
    LapHop,
    LapRun,
    StageStatus,
    Status,
    Tokens,
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
    StageInfo,
    Standby,
)

PULSE_S = 1.0
RATE_WINDOW_S = 10.0
GRACE_S = 60.0
"""How long a head that was asked to stop lets its streams finish."""


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
        first_hop_blocked: the address of the node after stage 0, while it takes nothing.
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
        first_hop_blocked: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.info = info
        self.first_hop_blocked = first_hop_blocked
        self.to_ring = to_ring
        self.from_ring = from_ring
        self.limits = limits
        self.front = Front(router, say)
        self.formation = Formation(info.fingerprint)
        self.scheduler = Scheduler(info.stages, info.kv_tokens, limits.token_budget, limits.max_running, limits.max_waiting)
        self.requests = Requests(self.front, vocabulary, self.scheduler, limits)
        self.lap_clock = LapClock([info.clock])
        self.health: dict[int, tuple[Health, float]] = {}
        self.spares = Spares()
        self.throughput = Throughput()
        self.stale = 0
        self._asked: Literal["stop", "drain"] | None = None
        self._stop_at: float | None = None
        self._started = self._broken_at = time.monotonic()
        self._next_pulse = 0.0
        self._dispatched: dict[int, int] = {}

    def run(self, woken: socket.socket) -> None:
        """The poll loop, until `stop` is heeded; a signal makes `woken` readable."""
        poller = zmq.Poller()
        for waited in (self.from_ring.socket, self.from_ring.monitor, self.front.router, woken):
            poller.register(waited, zmq.POLLIN)
        while not self._over():
            self._tick()
            if woken.fileno() in dict(poller.poll(self._patience_ms())):
                woken.recv(64)
            while arrived := self.from_ring.receive():
                self.from_the_ring(arrived)
            if self.from_ring.lost_peer():
                self._broken(self.info.stages - 1)
            for client, message in self.front.hear():
                self.from_client(client, message)
            self._dispatch()

    def _patience_ms(self) -> int:
        return 100 if self.formation.state != "ready" else max(1, int(1000 * (self._next_pulse - time.monotonic())))

    def _tick(self) -> None:
        """What time brings: the next Hello while forming, a pulse once a second when formed."""
        now = time.monotonic()
        if self.formation.state != "ready":
            if hello := self.formation.hello_due(now):
                self.formation.waits_for(self.first_hop_blocked())
                hello.routes = self.spares.choose(now)
                self._send(hello)
            if now - self._broken_at > self.limits.recovery_timeout:
                why = f"the ring has not formed for {self.limits.recovery_timeout:.0f} s: {self.formation.detail}"
                for stream in list(self.requests.streams.values()):
                    self.requests.fail(stream, why)
        elif now >= self._next_pulse:
            self._next_pulse = now + PULSE_S
            self._send(Pulse(self.formation.epoch))

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
            self.front.announce("info", info.stage, f"a spare for stage {info.stage} waits on {info.host}")

    def _hello(self, hello: Hello) -> None:
        before = (self.formation.state, self.formation.detail)
        if second := self.formation.returned(hello):
            self.from_ring.predecessor = second.stages[-1].incarnation
            self._send(second)
        state, detail = self.formation.state, self.formation.detail
        if (state, detail) == before:
            return
        if state == "mismatch":
            self.front.announce("error", -1, f"the ring cannot form: {detail}")
        elif state == "ready":
            self._formed()

    def _formed(self) -> None:
        stages = self.formation.stages
        capacity = min(stage.kv_tokens for stage in stages)
        self.scheduler.kv_tokens = capacity
        self.scheduler.pace = Pace(len(stages), shared=len({stage.clock for stage in stages}) < len(stages))
        self.lap_clock = LapClock([self.info.clock, *(stage.clock for stage in stages)])
        self.spares.formed()
        self.requests.formed(len(stages))
        self._next_pulse = 0.0
        hosts = " -> ".join(f"{s.stage}:{s.host}" for s in stages)
        self.front.announce("info", -1, f"the ring has formed: {len(stages)} stages ({hosts}), {capacity} tokens of KV cache")
        self.requests.notify("the ring has formed again; going on")

    def _broken(self, lost: int) -> None:
        """A node is gone. What was in flight is lost; every live sequence will be replayed when the ring has re-formed."""
        if self.formation.state != "ready" or not 0 <= lost < len(self.formation.stages):
            return
        info = self.formation.stages[lost]
        detail = f"stage {lost} ({info.host}, layers {info.first_layer}-{info.end_layer - 1}) is gone or cut off"
        self.formation.broken(detail)
        self._broken_at = time.monotonic()
        self.spares.lost(lost, self._broken_at)
        self._dispatched.clear()
        self.scheduler.rewind()
        self.health = {}
        self.front.announce("warning", lost, f"{detail}; {len(self.requests.streams)} streams wait for it to return")
        self.requests.notify(f"{detail}; waiting for it to return")

    def _sampled(self, message: Sampled, returned: int) -> None:
        microbatch = self.scheduler.in_flight.get(message.microbatch)
        if microbatch is None or not self._fits(message, microbatch):
            self.stale += 1
            return
        started = self._dispatched.pop(message.microbatch)
        duration, hops = self.lap_clock.measure(started, message.hops, returned)
        observe(self.scheduler.pace, microbatch, duration, hops)
        for sequence, _ in microbatch.parts:
            if stream := self.requests.streams.get(sequence.number):
                stream.lap(started, hops)
        runs = [LapRun(s.number, r.start, r.count, r.start < len(s.prompt)) for s, r in microbatch.parts]
        self._give_out(self.scheduler.complete(message.microbatch, message.tokens), message)
        self.front.show_lap(message.microbatch, message.epoch, started, duration, hops, runs)

    def _give_out(self, fresh: list[Fresh], message: Sampled) -> None:
        """Give each token to its stream. The next microbatch goes off before the clients are told: they can wait, stages
        should not."""
        self.throughput.add(len(fresh), time.monotonic())
        given: list[tuple[Stream, Tokens | None, FinishReason | None]] = []
        for sequence, token, row in fresh:
            stream = self.requests.streams.get(sequence.number)
            if stream is None or sequence.finished:  # an earlier token of this lap was its last
                continue
            tokens, reason = (None, None) if token is None else stream.push(token)
            if tokens is not None and sequence.sampling.logprobs is not None:
                tokens.logprobs = [self.requests.vocabulary.spell(message.logprobs[row])]
            if tokens is None or reason:
                self.scheduler.remove(sequence)
            given.append((stream, tokens, reason))
        self._dispatch()
        for stream, tokens, reason in given:
            if stream.sequence.number not in self.requests.streams:  # its client is gone
                continue
            if tokens is None:
                self.requests.fail(stream, f"stage {self.info.stages - 1} failed: the logits are not finite")
            elif not self.front.reply(stream.client, tokens):
                self.requests.drop(stream)
            elif reason:
                self.requests.finish(stream, reason)

    def _fits(self, message: Sampled, microbatch: Microbatch) -> bool:
        """Whether an answer is one that this ring could give: a token for each sampled run, a hop for each stage."""
        wanted = sum(len(run.answered) for _, run in microbatch.parts)
        asked = any(run.sampling is not None and run.sampling.logprobs is not None for _, run in microbatch.parts)
        stages = [hop.stage for hop in message.hops]
        known = all(token is None or token < self.requests.vocabulary.size for token in message.tokens)
        known = known and len(message.logprobs) == (wanted if asked else 0)
        return known and len(message.tokens) == wanted and stages == list(range(len(self.formation.stages)))

    def _fault(self, fault: Fault) -> None:
        if fault.microbatch not in self.scheduler.in_flight:
            return
        self._dispatched.pop(fault.microbatch, None)
        hit = self.scheduler.fail(fault.microbatch)
        self.front.announce("error", fault.stage, f"a microbatch of {len(hit)} sequences failed: {fault.cause}")
        for sequence in hit:
            self.requests.fail(self.requests.streams[sequence.number], f"stage {fault.stage} failed: {fault.cause}")

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

    def from_client(self, client: bytes, message: clients.ClientMessage) -> None:
        """Handle one client message."""
        if isinstance(message, Generate):
            self.requests.generate(client, message)
        elif isinstance(message, Cancel):
            self.requests.cancel(client, message.request)
        elif isinstance(message, Watch):
            self.front.watch(client, message.request, message.on)
        else:
            if isinstance(message, Drain):
                self.drain(message.on)
            self.front.reply(client, self.status(message.request))

    def drain(self, on: bool) -> None:
        """Take no more requests, or take them again."""
        if on != self.requests.draining:
            self.requests.draining = on
            left = len(self.requests.streams)
            self.front.announce("info", -1, f"draining: {left} streams to finish" if on else "no longer draining")

    def stop(self, at_once: bool) -> None:
        """Stop, or first let the streams finish; asked twice, at once. May be called from a signal handler."""
        self._asked = "stop" if at_once or self._asked else "drain"

    def _over(self) -> bool:
        """Whether to stop now."""
        if self._asked != "drain":
            return self._asked == "stop"
        if self._stop_at is None:
            self._stop_at = time.monotonic() + GRACE_S
            self.drain(True)
        # In a broken ring none would finish; their clients go on with the head that returns.
        going = self.requests.streams and self.formation.state == "ready"
        return not going or time.monotonic() > self._stop_at

    def status(self, request: int) -> Status:
        """The ring at this moment."""
        now = time.monotonic()
        vocabulary, scheduler = self.requests.vocabulary, self.scheduler
        return Status(
            request=request,
            protocol=PROTOCOL,
            model=vocabulary.name,
            dtype=self.info.dtype,
            state=self.formation.state,
            detail=self.formation.detail,
            epoch=self.formation.epoch,
            stages=[self._stage_status(info) for info in self.formation.stages],
            context=vocabulary.context,
            kv_tokens=scheduler.kv_tokens,
            kv_used=scheduler.kv_reserved,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            in_flight=len(scheduler.in_flight),
            tokens_per_s=self.throughput.rate(now),
            finished=self.requests.finished,
            failed=self.requests.failed,
            uptime_s=now - self._started,
            draining=self.requests.draining,
            spares=[stage for stage in range(self.info.stages) if self.spares.alive(stage, now)],
            missing=self.spares.missing,
            stale=self.stale,
        )

    def _stage_status(self, info: StageInfo) -> StageStatus:
        health, clock = self.health.get(info.stage, (Health(info.stage, 0, 0, 0, 0, 0), 0.0))
        strangers = self.front.refused if info.stage == 0 else 0
        figures = (health.resident_bytes, health.available_bytes, health.kv_used, health.refused + strangers)
        return StageStatus(info, *figures, clock)


class Throughput:
    """New tokens per second over the last ten seconds."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque()
        self._since: float | None = None

    def add(self, tokens: int, now: float) -> None:
        """Note new tokens."""
        self._since = now if self._since is None else self._since
        if tokens:
            self._recent.append((now, tokens))
        while self._recent and self._recent[0][0] < now - RATE_WINDOW_S:
            self._recent.popleft()

    def rate(self, now: float) -> float:
        """The rate at this moment; over a shorter time if the first token is not that old."""
        self.add(0, now)
        span = max(1.0, min(RATE_WINDOW_S, now - (self._since or now)))
        return sum(count for _, count in self._recent) / span


def observe(pace: Pace, microbatch: Microbatch, duration: int, hops: list[LapHop]) -> None:
    """Tell the pace what a lap has cost."""
    computes = [hop.compute_ns / 1e9 for hop in hops]
    moving = sum(hop.send_ns + hop.wire_ns for hop in hops) / 1e9
    tokens = sum(run.count for _, run in microbatch.parts)
    prefill = microbatch.decodes < len(microbatch.parts)
    pace.observe(tokens, microbatch.decoding, microbatch.groups, prefill, duration / 1e9, computes, moving)
