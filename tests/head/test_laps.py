"""A lap's parts add up to the lap, whatever the machines' clocks say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ring.head.laps import LapClock
from ring.wire.messages import Hop

MS = 1_000_000


def make_lap(offsets: list[int], wires: list[int], start: int = 10**12) -> tuple[int, list[Hop], int]:
    """A lap as machines with clocks off by `offsets` would stamp it: queue 1 ms, compute 5 ms, send 0.1 ms each."""
    now, hops = start, []
    for stage, offset in enumerate(offsets):
        now += wires[stage]
        stamps = (now, now + MS, now + 6 * MS, now + 6 * MS + MS // 10)
        now = stamps[-1]
        received, started, finished, sent = (stamp + offset for stamp in stamps)
        hops.append(Hop(stage, received, started, finished, sent, 100))
    return start, hops, now + wires[-1]


@given(
    st.lists(st.integers(0, 10**13), min_size=1, max_size=6),
    st.integers(0, 3 * MS),
    st.integers(1, 20),
)
def test_parts_add_up_with_any_clock_offsets(offsets: list[int], wire: int, laps: int) -> None:
    clock = LapClock(["head", *(f"machine {k}" for k in range(len(offsets)))])
    for lap in range(laps):
        wires = [wire + lap * 1000 * k for k in range(len(offsets) + 1)]
        duration, parts = clock.measure(*make_lap(offsets, wires))
        assert sum(p.queue_ns + p.compute_ns + p.send_ns + p.wire_ns for p in parts) == duration
        assert [p.compute_ns for p in parts] == [5 * MS] * len(offsets)


def test_hops_between_machines_are_right_when_their_clocks_are_seconds_apart() -> None:
    clock = LapClock(["a", "a", "b", "c"])
    for jitter in (0, 40_000, 10_000):
        _, parts = clock.measure(*make_lap([0, 5 * 10**9, -3 * 10**9], [0, 200_000, 200_000 + jitter, 200_000]))
    assert [p.wire_ns for p in parts] == [200_000, 210_000, 200_000]


def test_neighbours_on_one_clock_are_not_corrected() -> None:
    clock = LapClock(["a", "a", "a"])
    _, parts = clock.measure(*make_lap([0, 0], [50_000, 2 * MS, 300_000]))
    assert [p.wire_ns for p in parts] == [2 * MS, 300_000]
    assert parts[0].queue_ns == MS + 50_000, "the way from the head to stage 0 counts as its queue"
