"""How the ring forms: a Hello lap that every node checks, then one that tells all that it is complete."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ring.wire.clients import State
from ring.wire.messages import PROTOCOL, Hello, StageInfo

RETRY_S = 0.5


@dataclass(slots=True)
class Formation:
    """The ring's incarnation, as the head drives it. Pure but for the clock that it is handed.

    `epoch` starts from the wall clock, so that a restarted head is never mistaken for its former self.
    """

    fingerprint: str
    epoch: int = field(default_factory=time.time_ns)
    state: State = "forming"
    detail: str = "waiting for a Hello to come round; each node prints what it waits for"
    stages: list[StageInfo] = field(default_factory=list)
    _next_try: float = 0.0

    def hello_due(self, now: float) -> Hello | None:
        """The Hello to send now, without its routes, if it is time for one. Repeats carry the same epoch: the first to
        come round counts."""
        if self.state == "ready" or now < self._next_try:
            return None
        self._next_try = now + RETRY_S
        return Hello(protocol=PROTOCOL, epoch=self.epoch, fingerprint=self.fingerprint)

    def waits_for(self, blocked: str | None) -> None:
        """Say for whom a ring that has never formed waits: the next node, if it takes nothing (`blocked` is its address),
        or a later one."""
        if self.state == "forming" and not self.stages:
            self.detail = (
                f"waiting for stage 1 at {blocked}, which does not answer"
                if blocked
                else "waiting for a Hello to come round; each node prints what it waits for"
            )

    def returned(self, hello: Hello) -> Hello | None:
        """A Hello came round: returns the second lap's, once the first has been right. `state` is `ready` when that
        one is back."""
        if hello.epoch != self.epoch or self.state == "ready":
            return None
        if hello.floor > self.epoch:  # this head's clock is behind that of an earlier one
            self.epoch, self._next_try = hello.floor + 1, 0.0
            return None
        if hello.problem is None and hello.lap == 2:
            self.state, self.detail, self.stages = "ready", "", hello.stages
            return None
        problem = hello.problem or incomplete(hello.stages)
        if problem:
            self.state, self.detail = "mismatch", problem
            return None
        if hello.lap == 1:
            return Hello(PROTOCOL, self.epoch, self.fingerprint, lap=2, stages=hello.stages)
        return None

    def broken(self, detail: str) -> None:
        """The ring lost a node: start over with the next epoch."""
        self.epoch += 1
        self.state, self.detail = "forming", detail
        self._next_try = 0.0


def incomplete(stages: list[StageInfo]) -> str | None:
    """Why a Hello that no node objected to is still not a ring, or None."""
    if not stages:
        return "no stage answered the Hello"
    last = stages[-1]
    if len(stages) < last.stages:
        return (
            f"the ring closes after stage {last.stage} of {last.stages}: --next of the node at {last.listen} on "
            f"{last.host} must lead to stage {last.stage + 1}, not to the head"
        )
    return None
