"""A ring in simulated time: the head's own scheduler and pace, with stages and links that are only figures.

No torch, no sockets, no clock: an hour of 128 machines takes seconds. What happens next is always the earliest of the
events that are due. A stage computes one microbatch after another, in the order of their arrival; a link carries one
message after another; nodes on one computer share it, as `at_once` says.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ring.bench.load import Round
from ring.head.pace import Pace
from ring.head.scheduler import Microbatch, Scheduler
from ring.head.sequence import Sequence as Stream
from ring.plan.cost import Work

ATTENDED_STEP = 32
"""Tokens; sequences whose length differs by less are taken as equally long, so that times need not be computed anew."""
REFORMING_LAPS = 2
"""Laps that a Hello takes to form a ring."""


class SimulationError(ValueError):
    """What cannot be simulated; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class SimStage:
    """A stage and its link to the next.

    Args:
        seconds: what a microbatch takes to compute.
        transfer: seconds that its message with so many rows occupies the link.
        latency: seconds that a message is on its way beside that.
        host: stages with the same name share a computer, which runs `at_once` of them at full speed.
    """

    seconds: Callable[[Work], float]
    transfer: Callable[[int], float] = lambda rows: 0.0
    latency: float = 0.0
    host: str = ""
    at_once: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt of so many tokens that arrives `at` this second, for exactly `new_tokens`."""

    prompt: int
    new_tokens: int
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Outage:
    """A stage that is gone from second `at` on, for `seconds`."""

    stage: int
    at: float
    seconds: float


@dataclass(slots=True)
class Outcome:
    """What a simulated ring has done: when each request got its tokens, as in a real round, and how long each stage
    computed. Times in seconds from the start; `laps` counts microbatches that came round."""

    requests: list[Request]
    arrivals: list[list[float]]
    busy: list[float]
    laps: int = 0

    @property
    def round(self) -> Round:
        """The same figures as of a real round."""
        return Round(self.arrivals)

    @property
    def ttft_s(self) -> float:
        """Mean time to first token, from each request's own arrival."""
        firsts = [times[0] - request.at for times, request in zip(self.arrivals, self.requests, strict=True)]
        return sum(firsts) / len(firsts)

    @property
    def itl_s(self) -> float:
        """Mean inter-token latency; 0 with fewer than two tokens."""
        gaps = self.round.gaps_s
        return sum(gaps) / len(gaps) if gaps else 0.0

    @property
    def bubble(self) -> float:
        """The share of the stages' time, from the first request to the last token, in which they computed nothing."""
        span = self.round.wall_s - min(request.at for request in self.requests)
        return 1 - sum(self.busy) / (len(self.busy) * span) if span else 0.0


@dataclass(slots=True)
class Computer:
    """Where some stages compute: all that are busy get an even share of it."""

    at_once: float
    left: dict[int, float] = field(default_factory=dict)
    since: float = 0.0
    version: int = 0

    @property
    def speed(self) -> float:
        """Of each stage that computes now, where 1 is a computer to itself."""
        return min(1.0, self.at_once / len(self.left)) if self.left else 1.0

    def catch_up(self, now: float) -> None:
        """Take off what has been computed since the last change."""
        done = (now - self.since) * self.speed
        for stage in self.left:
            self.left[stage] -= done
        self.since = now


@dataclass(slots=True)
class Passage:
    """A microbatch on its way round."""

    microbatch: Microbatch
    work: Work
    rows: int
    started: float
    entered: float = 0.0
    computes: list[float] = field(default_factory=list)
    moving: float = 0.0


class Simulation:
    """One ring and its requests; `run` once.

    Args:
        stages: in the order of the ring.
        requests: what is asked.
        outages: when stages are missing; the ring forms again, and replays, when all are back.
        kv_tokens: KV cache of the smallest stage; None: enough.
        token_budget: most tokens of a microbatch.

    Raises:
        SimulationError: no stage, no request, or an outage of a stage that there is not.
    """

    def __init__(
        self,
        stages: Sequence[SimStage],
        requests: Sequence[Request],
        outages: Sequence[Outage] = (),
        kv_tokens: int | None = None,
        token_budget: int = 128,
    ) -> None:
        if not stages or not requests:
            raise SimulationError("a simulation needs a stage and a request")
        for outage in outages:
            if not 0 <= outage.stage < len(stages):
                raise SimulationError(f"there is no stage {outage.stage}; the ring has stages 0 to {len(stages) - 1}")
        self.stages = list(stages)
        room = kv_tokens or sum(request.prompt + request.new_tokens for request in requests)
        most = len(requests)
        self.scheduler = Scheduler(len(stages), room, token_budget, max_running=max(64, most), max_waiting=most)
        self.outcome = Outcome(list(requests), [[] for _ in requests], [0.0] * len(stages))
        hosts = [stage.host for stage in stages]
        shared = {stage.host: Computer(stage.at_once) for stage in stages if stage.host and hosts.count(stage.host) > 1}
        self._computer = [shared.get(host) for host in hosts]  # None: a computer to itself
        self._waiting: list[deque[Passage]] = [deque() for _ in stages]
        self._computing: list[Passage | None] = [None] * len(stages)
        self._link_free = [0.0] * len(stages)
        self._events: list[tuple[float, int, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = itertools.count()
        self._epoch = 0
        self._missing = 0
        self._ready = True
        self._known: list[dict[Work, float]] = [{} for _ in stages]
        self._sequences: dict[int, int] = {}
        self.now = 0.0
        self._form()
        for number, request in enumerate(requests):
            self._at(request.at, self._ask, number, always=True)
        for outage in outages:
            self._at(outage.at, self._break, outage.stage, always=True)
            self._at(outage.at + outage.seconds, self._return, always=True)

    def run(self) -> Outcome:
        """Let all requests finish."""
        left = sum(request.new_tokens for request in self.outcome.requests)
        while self._events and sum(map(len, self.outcome.arrivals)) < left:
            self.now, _, epoch, act, arguments = heapq.heappop(self._events)
            if epoch in (-1, self._epoch):
                act(*arguments)
        return self.outcome

    def _at(self, when: float, act: Callable[..., None], *arguments: object, always: bool = False) -> None:
        """Something will happen; unless `always`, only if the ring has not broken until then."""
        heapq.heappush(self._events, (when, next(self._order), -1 if always else self._epoch, act, arguments))

    def _form(self) -> None:
        self.scheduler.pace = Pace(len(self.stages), shared=any(self._computer))

    def _ask(self, number: int) -> None:
        request = self.outcome.requests[number]
        self.scheduler.add(Stream(number, [0] * request.prompt, request.new_tokens))
        self._at(self.now, self._dispatch)  # once all that come at this moment are there, as the head does

    def _dispatch(self) -> None:
        """What the head does after every message: fill the ring."""
        if not self._ready:
            return
        self.scheduler.take_released()
        while microbatch := self.scheduler.next_microbatch():
            work, rows = work_of(microbatch)
            self._arrive(0, Passage(microbatch, work, rows, self.now))

    def _arrive(self, stage: int, passage: Passage) -> None:
        if stage == len(self.stages):
            self._come_round(passage)
        elif self._computing[stage] is None:
            self._start(stage, passage)
        else:
            self._waiting[stage].append(passage)

    def _start(self, stage: int, passage: Passage) -> None:
        passage.entered = self.now
        self._computing[stage] = passage
        known = self._known[stage]
        if passage.work not in known:
            known[passage.work] = self.stages[stage].seconds(passage.work)
        computer = self._computer[stage]
        if computer is None:
            self._at(self.now + known[passage.work], self._finish, stage)
        else:
            computer.catch_up(self.now)
            computer.left[stage] = known[passage.work]
            self._expect(computer)

    def _expect(self, computer: Computer) -> None:
        """When the next stage of a computer will have finished, as things are now."""
        computer.version += 1
        if computer.left:
            stage = min(computer.left, key=computer.left.__getitem__)
            self._at(self.now + max(0.0, computer.left[stage]) / computer.speed, self._finish_shared, stage, computer.version)

    def _finish_shared(self, stage: int, version: int) -> None:
        computer = self._computer[stage]
        assert computer is not None
        if version == computer.version:  # else another has begun or finished since this was expected
            computer.catch_up(self.now)
            del computer.left[stage]
            self._expect(computer)
            self._finish(stage)

    def _finish(self, stage: int) -> None:
        passage = self._computing[stage]
        assert passage is not None
        took = self.now - passage.entered
        passage.computes.append(took)
        self.outcome.busy[stage] += took
        self._send(stage, passage)
        self._computing[stage] = None
        if self._waiting[stage]:
            self._start(stage, self._waiting[stage].popleft())

    def _send(self, stage: int, passage: Passage) -> None:
        link = self.stages[stage]
        free = max(self.now, self._link_free[stage]) + link.transfer(passage.rows)
        self._link_free[stage] = free
        arrives = free + link.latency
        passage.moving += arrives - self.now
        self._at(arrives, self._arrive, stage + 1, passage)

    def _come_round(self, passage: Passage) -> None:
        """What the head does with a microbatch that has come round."""
        microbatch = passage.microbatch
        tokens = sum(run.count for _, run in microbatch.parts)
        prefill = microbatch.decodes < len(microbatch.parts)
        lap = (self.now - passage.started, passage.computes, passage.moving)
        self.scheduler.pace.observe(tokens, microbatch.decoding, microbatch.groups, prefill, *lap)
        answers: list[int | None] = [0 for _, run in microbatch.parts if run.sampling is not None]
        for fresh in self.scheduler.complete(microbatch.number, answers):
            sequence = fresh.sequence
            self.outcome.arrivals[sequence.number].append(self.now)
            if len(sequence.generated) == sequence.max_tokens:
                self.scheduler.remove(sequence)
        self.outcome.laps += 1
        self._dispatch()

    def _break(self, _: int) -> None:
        """A stage is gone: what was in flight is lost."""
        self._missing += 1
        self._ready = False
        self._epoch += 1
        self.scheduler.rewind()
        for computer in filter(None, self._computer):
            computer.left.clear()
        for stage, passage in enumerate(self._computing):
            if passage is not None:
                self.outcome.busy[stage] += self.now - passage.entered
            self._computing[stage] = None
            self._waiting[stage].clear()
            self._link_free[stage] = self.now

    def _return(self) -> None:
        """A stage is back; when all are, the ring forms again."""
        self._missing -= 1
        if self._missing == 0:
            self._at(self.now + REFORMING_LAPS * sum(stage.latency for stage in self.stages), self._formed)

    def _formed(self) -> None:
        self._ready = True
        self._form()
        self._dispatch()


def work_of(microbatch: Microbatch) -> tuple[Work, int]:
    """A microbatch as the stages see it, and its rows."""
    decodes, prompts = microbatch.parts[: microbatch.decodes], microbatch.parts[microbatch.decodes :]
    prefill = sum(run.count for _, run in prompts)
    attended = sum(run.start for _, run in decodes) / len(decodes) if decodes else 0
    before = sum((run.start + run.count / 2) * run.count for _, run in prompts) / prefill if prompts else 0
    sampled = sum(run.sampling is not None for _, run in microbatch.parts)
    work = Work(
        len(decodes),
        round(attended / ATTENDED_STEP) * ATTENDED_STEP,
        prefill,
        len(prompts),
        round(before / ATTENDED_STEP) * ATTENDED_STEP,
        sampled,
    )
    return work, len(decodes) + prefill


def simulate(stages: Sequence[SimStage], streams: int, prompt: int, new_tokens: int, token_budget: int = 128) -> Outcome:
    """All prompts at once, as `ring.bench.load.run_round` asks them."""
    return Simulation(stages, [Request(prompt, new_tokens)] * streams, token_budget=token_budget).run()
