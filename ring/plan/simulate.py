"""A ring in simulated time: the head's own scheduler and pace, with stages and links that are only figures.

No torch, no sockets, no waiting: an hour of 128 machines takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from ring.head.pace import Pace
from ring.head.scheduler import Microbatch, Scheduler
from ring.head.sequence import Sequence as Stream
from ring.plan.clock import Clock
from ring.plan.cost import Work
from ring.plan.outcome import Outage as Outage  # what goes into a simulation, and what comes out, is there for its users
from ring.plan.outcome import Outcome as Outcome
from ring.plan.outcome import Request as Request
from ring.plan.way import Passage, Way
from ring.plan.way import SimStage as SimStage

ATTENDED_STEP = 32
"""Tokens; sequences whose length differs by less are taken as equally long, so that times need not be computed anew."""
REFORMING_LAPS = 2
"""Laps that a Hello takes to form a ring."""


class SimulationError(ValueError):
    """What cannot be simulated; the message is one sentence."""


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
        room = kv_tokens or sum(request.prompt + request.new_tokens for request in requests)
        most = len(requests)
        self.scheduler = Scheduler(len(stages), room, token_budget, max_running=max(64, most), max_waiting=most)
        self.clock = Clock()
        self.way = Way(stages, self.clock, self._come_round)
        self.outcome = Outcome(list(requests), [[] for _ in requests], self.way.busy)
        self._left = sum(request.new_tokens for request in requests)
        self._missing = 0
        self._ready = True
        self._form()
        for number, request in enumerate(requests):
            self.clock.at(request.at, self._ask, number, always=True)
        for outage in outages:
            self.clock.at(outage.at, self._break, always=True)
            self.clock.at(outage.at + outage.seconds, self._return, always=True)

    def run(self) -> Outcome:
        """Let all requests finish."""
        while self._left and self.clock.step():
            pass
        return self.outcome

    def _form(self) -> None:
        self.scheduler.pace = Pace(len(self.way.stages), self.way.shared)

    def _ask(self, number: int) -> None:
        request = self.outcome.requests[number]
        self.scheduler.add(Stream(number, [0] * request.prompt, request.new_tokens))
        self.clock.at(self.clock.now, self._dispatch)  # once all that come at this moment are there, as the head does

    def _dispatch(self) -> None:
        """What the head does after every message: fill the ring."""
        if not self._ready:
            return
        self.scheduler.take_released()
        while microbatch := self.scheduler.next_microbatch():
            self.way.enter(microbatch, *work_of(microbatch))

    def _come_round(self, passage: Passage) -> None:
        """What the head does with a microbatch that has come round."""
        microbatch = passage.microbatch
        tokens = sum(run.count for _, run in microbatch.parts)
        prefill = microbatch.decodes < len(microbatch.parts)
        lap = (self.clock.now - passage.entered, passage.computes, passage.moving)
        self.scheduler.pace.observe(tokens, microbatch.decoding, microbatch.groups, prefill, *lap)
        answers: list[int | None] = [0 for _, run in microbatch.parts if run.sampling is not None]
        for fresh in self.scheduler.complete(microbatch.number, answers):
            sequence = fresh.sequence
            self.outcome.arrivals[sequence.number].append(self.clock.now)
            self._left -= 1
            if len(sequence.generated) == sequence.max_tokens:
                self.scheduler.remove(sequence)
        self.outcome.laps += 1
        self._dispatch()

    def _break(self) -> None:
        """A stage is gone: what was in flight is lost."""
        self._missing += 1
        self._ready = False
        self.clock.forget()
        self.scheduler.rewind()
        self.way.lose()

    def _return(self) -> None:
        """A stage is back; when all are, the ring forms again."""
        self._missing -= 1
        if self._missing == 0:
            self.clock.at(self.clock.now + REFORMING_LAPS * sum(stage.latency for stage in self.way.stages), self._formed)

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
