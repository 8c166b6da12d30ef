"""The way round a simulated ring: stages that are only figures, and the links between them.

A stage computes one microbatch after another, in the order of their arrival; a link carries one message after another;
stages on one computer share it, as `at_once` says. Messages never overtake each other: so when a stage with a computer to
itself, and its link, will have done with a microbatch is known as soon as it is under way to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ring.head.scheduler import Microbatch
from ring.plan.clock import Clock
from ring.plan.cost import Work


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


@dataclass(slots=True, eq=False)
class Passage:
    """A microbatch on its way round: what each stage and each link takes for it; where it `entered` the ring; when the
    stages that it has passed `began` with it, and how long they computed; how long it was on links."""

    microbatch: Microbatch
    seconds: list[float]
    transfers: list[float]
    entered: float
    began: list[float] = field(default_factory=list)
    computes: list[float] = field(default_factory=list)
    moving: float = 0.0


class Way:
    """All stages and links of a ring.

    Args:
        stages: in the order of the ring.
        clock: the ring's time.
        home: told of each microbatch that has come round.
    """

    def __init__(self, stages: Sequence[SimStage], clock: Clock, home: Callable[[Passage], None]) -> None:
        self.stages = list(stages)
        self.clock = clock
        self.home = home
        self.busy = [0.0] * len(stages)
        hosts = [stage.host for stage in stages]
        shared = {stage.host: Computer(stage.at_once) for stage in stages if stage.host and hosts.count(stage.host) > 1}
        self._computers = [shared.get(host) for host in hosts]  # None: a computer to itself
        self._latencies = [stage.latency for stage in stages]
        self._known: dict[tuple[Work, int], tuple[list[float], list[float]]] = {}
        self._clear()

    @property
    def shared(self) -> bool:
        """Whether some stages share a computer."""
        return any(self._computers)

    def enter(self, microbatch: Microbatch, work: Work, rows: int) -> None:
        """Send a microbatch of so many rows round, from now on."""
        if (work, rows) not in self._known:
            seconds = [stage.seconds(work) for stage in self.stages]
            self._known[work, rows] = seconds, [stage.transfer(rows) for stage in self.stages]
        passage = Passage(microbatch, *self._known[work, rows], self.clock.now)
        self._under_way.append(passage)
        self._go_on(passage, 0, self.clock.now)

    def lose(self) -> None:
        """What is under way is lost; each stage has computed until now."""
        now = self.clock.now
        for passage in self._under_way:
            for stage, (began, took) in enumerate(zip(passage.began, passage.computes, strict=False)):
                self.busy[stage] -= min(took, max(0.0, began + took - now))
        for stage, current in enumerate(self._computing):
            if current is not None:
                self.busy[stage] += now - current.began[-1]
        self._clear()

    def _clear(self) -> None:
        count = len(self.stages)
        self._under_way: deque[Passage] = deque()
        self._stage_free, self._link_free = [self.clock.now] * count, [self.clock.now] * count
        self._waiting: list[deque[Passage]] = [deque() for _ in range(count)]
        self._computing: list[Passage | None] = [None] * count
        for computer in filter(None, self._computers):
            computer.left.clear()

    def _go_on(self, passage: Passage, stage: int, now: float) -> None:
        """On its way to a stage at second `now`: past all that have a computer to themselves."""
        while stage < len(self.stages) and self._computers[stage] is None:
            began = max(now, self._stage_free[stage])
            took = passage.seconds[stage]
            self._stage_free[stage] = began + took
            self.busy[stage] += took
            passage.began.append(began)
            passage.computes.append(took)
            now = self._send(passage, stage, began + took)
            stage += 1
        self.clock.at(now, self._arrive, passage, stage)

    def _send(self, passage: Passage, stage: int, now: float) -> float:
        """Send what a stage has computed; returns when it arrives."""
        free = max(now, self._link_free[stage]) + passage.transfers[stage]
        self._link_free[stage] = free
        arrives = free + self._latencies[stage]
        passage.moving += arrives - now
        return arrives

    def _arrive(self, passage: Passage, stage: int) -> None:
        """It has come round, or to a stage that shares its computer."""
        if stage == len(self.stages):
            self._under_way.remove(passage)
            self.home(passage)
        elif self._computing[stage] is None:
            self._start(passage, stage)
        else:
            self._waiting[stage].append(passage)

    def _start(self, passage: Passage, stage: int) -> None:
        passage.began.append(self.clock.now)
        self._computing[stage] = passage
        computer = self._computers[stage]
        assert computer is not None
        computer.catch_up(self.clock.now)
        computer.left[stage] = passage.seconds[stage]
        self._expect(computer)

    def _expect(self, computer: Computer) -> None:
        """When the next stage of a computer will have finished, as things are now."""
        computer.version += 1
        if computer.left:
            stage = min(computer.left, key=computer.left.__getitem__)
            when = self.clock.now + max(0.0, computer.left[stage]) / computer.speed
            self.clock.at(when, self._finish, computer, stage, computer.version)

    def _finish(self, computer: Computer, stage: int, version: int) -> None:
        if version != computer.version:
            return  # another has begun or finished since this was expected
        computer.catch_up(self.clock.now)
        del computer.left[stage]
        self._expect(computer)
        passage = self._computing[stage]
        assert passage is not None
        took = self.clock.now - passage.began[-1]
        passage.computes.append(took)
        self.busy[stage] += took
        self._computing[stage] = None
        self._go_on(passage, stage + 1, self._send(passage, stage, self.clock.now))
        if self._waiting[stage]:
            self._start(self._waiting[stage].popleft(), stage)
