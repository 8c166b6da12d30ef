"""How many microbatches to form and how many tokens to put into one, learned from what laps cost. Pure.

A sequence gets one token a lap, so of all ways to divide the decoding sequences the one with the shortest lap is the
fastest. On machines of their own, stages are kept busy by as many microbatches as fit into a lap: a lap's time less its
waits, over the slowest stage's. More would only read every weight more often. Where stages share a machine they share
its memory too, and fewer, fuller microbatches may be faster than a full pipeline: there it is tried out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, log2

from ring.wire.messages import BLOCK

WEIGHT = 0.2
"""Of the newest measurement in a running mean."""
FIRST, TRIAL = 16, 6
"""Laps before another number of microbatches is tried, and laps of a trial."""
HYSTERESIS = 0.9
WINDOW = 64
"""Laps after which older ones are forgotten."""
CHUNKS = 10
"""A prompt in `CHUNKS` pieces for each stage after the first loses an eleventh of the time to filling the pipeline."""
TELLING = 4 * BLOCK
"""Tokens of a microbatch whose time says what a token costs; of fewer, a part is what any microbatch takes."""
SLOWDOWN = 1.4
"""How much longer than a decode step a microbatch may take that carries a running stream beside a prompt."""


@dataclass(slots=True)
class Trials:
    """One number of decoding sequences, the ways to divide it, and the lap time that each has shown.

    After some laps of the first, each is tried for a few, and the first is kept unless another was clearly faster; the
    others get another chance after 128 laps, 256 … The fastest lap of a trial counts: what else the machine does only
    makes laps longer. None is tried while a microbatch that is alone in the ring is hardly faster: the stages don't
    slow each other.
    """

    ways: list[int]
    laps: dict[int, float] = field(default_factory=dict)
    current: int = 0
    seen: int = 0
    patience: int = 2 * WINDOW
    tried: bool = False

    def __post_init__(self) -> None:
        self.current = self.ways[0]

    def observe(self, groups: int, duration: float, alone: float) -> None:
        """A lap of a microbatch that was formed as one of `groups`; alone, with fewer tokens, it has taken `alone` seconds."""
        if groups != self.current:
            return
        self.seen += 1
        passed = self.seen - 2 * groups  # until then the way before is still passing through the stages
        if passed < 1:
            return
        fresh = passed == 1 or passed % WINDOW == 0
        self.laps[groups] = duration if fresh else min(self.laps[groups], duration)
        if passed < (TRIAL if self.tried else FIRST):
            return
        if self.current == self.ways[0] and alone > HYSTERESIS * self.laps[self.current]:
            return
        self.tried = True
        if untried := [way for way in self.ways if way not in self.laps]:
            self._turn(untried[0])
            return
        best = min(self.laps, key=lambda way: self.laps[way] * (HYSTERESIS if way == self.ways[0] else 1.0))
        if best != self.current:
            self._turn(best)
        elif passed >= self.patience and len(self.ways) > 1:
            self.patience *= 2
            others = [way for way in self.ways if way != self.current]
            self._turn(others[self.patience.bit_length() % len(others)])

    def _turn(self, way: int) -> None:
        self.current, self.seen = way, 0


class Pace:
    """What the laps so far say of the next microbatch.

    Args:
        stages: of the ring.
        shared: whether some of them run on one machine.
    """

    def __init__(self, stages: int, shared: bool = False) -> None:
        self.stages = stages
        self.shared = shared
        self._ratio = float(stages)
        self._step: float | None = None
        self._token: float | None = None
        self._alone = 0.0
        self._trials: dict[tuple[int, int], Trials] = {}

    def observe(
        self, tokens: int, decoding: int, groups: int, prefill: bool, duration: float, computes: Sequence[float], moving: float
    ) -> None:
        """A microbatch has come round.

        Args:
            tokens: how many it carried.
            decoding: how many sequences were decoding when it was formed, in `groups` microbatches.
            prefill: whether it carried any of a prompt.
            duration: seconds from head to head.
            computes: seconds of computing on each stage.
            moving: seconds in which it was sent or on a wire.
        """
        slowest = max(*computes, 1e-9) if computes else 1e-9
        ratio = (sum(computes) + moving) / slowest
        self._ratio += WEIGHT * (min(ratio, 4.0 * self.stages) - self._ratio)
        if prefill:
            each = slowest / tokens
            if self._token is None or each < self._token:
                self._token = each
            elif tokens >= TELLING:
                self._token = min(each, self._token * 1.005)
        else:
            self._step = slowest if self._step is None else self._step + WEIGHT * (slowest - self._step)
            if groups == 1:
                self._alone = min(self._alone or duration, duration)
            if trials := self._trials.get(self._key(decoding)):
                trials.observe(groups, duration, self._alone)

    @property
    def depth(self) -> int:
        """How many microbatches keep every stage busy; a bubble of a quarter of a step is not worth another."""
        return max(1, ceil(self._ratio - 0.25 - 1e-6))

    def groups(self, decoding: int) -> int:
        """Into how many microbatches to divide so many decoding sequences."""
        most = max(1, min(self.depth, decoding))
        if not self.shared or most == 1:
            return most
        key = self._key(decoding)
        if key not in self._trials:
            self._trials[key] = Trials(sorted({most, (most + 1) // 2, 1}, reverse=True))
        return min(most, self._trials[key].current)

    def _key(self, decoding: int) -> tuple[int, int]:
        """Numbers that differ by less than a fifth are taken as one."""
        return round(4 * log2(max(1, decoding))), min(self.depth, decoding)

    def chunk(self, pending: int, decoding: int, budget: int) -> int:
        """Most tokens of a microbatch, with `pending` tokens of prompts to prefill.

        Beside running streams, so many that they hardly notice; else enough pieces that all stages share a prompt, but not
        so few tokens in one that they take no less time than more would.
        """
        least = 2.0 * BLOCK if self._step is None or self._token is None else self._step / self._token
        if decoding:
            return min(budget, max(int(SLOWDOWN * least), BLOCK))
        if self.depth == 1:
            return budget
        share = max(least, pending / (CHUNKS * (self.depth - 1)))
        blocks = max(1, round(share / BLOCK))
        # The last piece takes what would be a short one: that would cost each stage a step of its own.
        return min(budget, BLOCK * blocks if pending >= 1.5 * BLOCK * blocks else pending)
