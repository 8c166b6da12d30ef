"""From the hops that a message collected to a lap whose parts add up, whatever the machines' clocks say."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from ring.wire.clients import LapHop, StageTiming
from ring.wire.messages import Hop

WINDOW = 256


class LapClock:
    """Turns raw time stamps into durations.

    Queue, compute and send times are differences on one machine's clock. A hop's wire time is not: it holds the offset
    between two clocks. Those offsets cancel over a whole lap, so the wires' sum is exact. Where neighbours share a
    clock (`clocks` has the same name) the wire time is exact too; the other hops are corrected by taking the fastest
    of the last 256 laps as equally fast on each of them.

    Args:
        clocks: the head's clock, then each stage's, in ring order.
    """

    def __init__(self, clocks: list[str]) -> None:
        around = [*clocks, clocks[0]]
        self._crossing = [a != b for a, b in pairwise(around)]
        self._recent: list[deque[int]] = [deque(maxlen=WINDOW) for _ in self._crossing]

    def measure(self, dispatched: int, hops: list[Hop], returned: int) -> tuple[int, list[LapHop]]:
        """One lap, from the head (`dispatched`) through all stages back to the head (`returned`), in nanoseconds.

        The first wire, from the head to stage 0 in the same process, counts as stage 0's queue.
        """
        raw = []
        left = dispatched
        for hop in hops:
            raw.append(hop.received - left)
            left = hop.sent
        raw.append(returned - left)
        wires = self._correct(raw)
        parts = []
        for index, hop in enumerate(hops):
            queue = hop.started - hop.received + (wires[0] if index == 0 else 0)
            compute, send = hop.finished - hop.started, hop.sent - hop.finished
            parts.append(LapHop(hop.stage, queue, compute, send, wires[index + 1], hop.bytes))
        return returned - dispatched, parts

    def _correct(self, raw: list[int]) -> list[int]:
        wires = list(raw)
        crossing = [index for index, crosses in enumerate(self._crossing) if crosses]
        for index in crossing:
            self._recent[index].append(raw[index])
        if crossing:
            fastest = {index: min(self._recent[index]) for index in crossing}
            fair = sum(fastest.values()) // len(crossing)
            for index in crossing:
                wires[index] = raw[index] - fastest[index] + fair
            wires[crossing[-1]] += sum(raw) - sum(wires)  # the division's remainder
        return wires


def add_to(timings: list[StageTiming], hops: list[LapHop]) -> None:
    """Add a lap to the sums of a sequence that took part in it."""
    for timing, hop in zip(timings, hops, strict=True):
        timing.laps += 1
        timing.queue_s += hop.queue_ns / 1e9
        timing.compute_s += hop.compute_ns / 1e9
        timing.wire_s += (hop.send_ns + hop.wire_ns) / 1e9
        timing.bytes += hop.bytes
