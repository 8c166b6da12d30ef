"""The optimiser against every cut there is."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring.plan.cut import Table
from ring.plan.optimize import best
from ring.plan.search import Choice, Tables

INF = float("inf")


def table(layers: int, speed: float, most: int, head: float, hop: float) -> tuple[Table, Table]:
    """A machine that takes `speed` a layer, holds `most` layers, and sends in `hop`."""
    busy = np.full((layers + 1, layers + 1), INF)
    for start in range(layers):
        for end in range(start + 1, layers + 1):
            if end - start <= most:
                busy[start, end] = speed * (end - start) + (head * speed if end == layers else 0)
    return busy, busy + hop


def brute_force(
    tables: list[tuple[Table, Table]], layers: int, streams: int, any_order: bool, must: int | None, tolerance: float
) -> tuple[float, float, int]:
    """Of all cuts the shortest lap; within the tolerance the least work; and with that the fewest machines."""
    found = []
    for count in range(1, min(len(tables), layers) + 1):
        groups = microbatches(streams, count)
        for chosen in (permutations if any_order else combinations)(range(len(tables)), count):
            if must is not None and must not in chosen:
                continue
            for inner in combinations(range(1, layers), count - 1):
                cut = list(pairwise([0, *inner, layers]))
                busy = max(float(tables[m][0][i, j]) for m, (i, j) in zip(chosen, cut, strict=True))
                way = sum(float(tables[m][1][i, j]) for m, (i, j) in zip(chosen, cut, strict=True))
                found.append((max(way, groups * busy), groups * busy, count))
    lap = min((entry[0] for entry in found), default=INF)
    work, count = min((entry[1:] for entry in found if entry[0] <= lap * (1 + tolerance) + 1e-6), default=(INF, 0))
    return lap, work, count


def microbatches(streams: int, stages: int) -> int:
    """How many there are when the scheduler deals streams out over stages, as many to each as to the first."""
    share = -(-streams // min(streams, stages))
    return len(range(0, streams, share))


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[tuple[Table, Table]], int]:
    layers = draw(st.integers(1, 6))
    whole = st.integers(1, 12)  # whole numbers, so that ties are ties
    kinds = [
        table(layers, draw(whole), draw(st.integers(1, 6)), draw(st.integers(0, 3)), draw(st.sampled_from([0, 1, 5, 40])))
        for _ in range(draw(st.integers(1, 3)))
    ]
    return [draw(st.sampled_from(kinds)) for _ in range(draw(st.integers(1, 4)))], layers


@settings(max_examples=150, deadline=None)
@given(problem=problems(), streams=st.integers(1, 6), any_order=st.booleans(), data=st.data())
def test_no_cut_has_a_shorter_lap(
    problem: tuple[list[tuple[Table, Table]], int], streams: int, any_order: bool, data: st.DataObject
) -> None:
    tables, layers = problem
    must = data.draw(st.none() | st.integers(0, len(tables) - 1))
    tolerance = data.draw(st.sampled_from([0.0, 0.0101, 0.1001]))
    both = Tables(*map(list, zip(*tables, strict=True)))
    found = best(lambda _: both, len(tables), layers, streams, any_order, must, tolerance)
    lap, work, count = brute_force(tables, layers, streams, any_order, must, tolerance)
    if lap == INF:
        assert found is None
        return
    assert found is not None
    check(found, tables, layers)
    assert lap <= found.lap + 1e-6 <= lap * (1 + tolerance) + 2e-6
    assert found.work == pytest.approx(work), "of laps that are as good the most even one"
    assert len(found.machines) == count, "no more machines than it takes"
    assert must is None or must in found.machines


def check(choice: Choice, tables: list[tuple[Table, Table]], layers: int) -> None:
    """What a choice says of itself is so."""
    assert [start for start, _ in choice.ranges] == [0, *(end for _, end in choice.ranges)][:-1]
    assert choice.ranges[-1][1] == layers and len(set(choice.machines)) == len(choice.machines)
    stages = list(zip(choice.machines, choice.ranges, strict=True))
    assert choice.bottleneck == max(tables[m][0][cut] for m, cut in stages)
    assert choice.way == pytest.approx(sum(tables[m][1][cut] for m, cut in stages))


@settings(max_examples=100, deadline=None)
@given(problem=problems(), streams=st.integers(1, 6))
def test_microbatches_that_shrink_with_more_stages(problem: tuple[list[tuple[Table, Table]], int], streams: int) -> None:
    tables, layers = problem

    def scaled(stages: int) -> list[tuple[Table, Table]]:
        rows = -(-streams // min(stages, streams))
        return [(busy * rows, total * rows) for busy, total in tables]

    found = best(lambda stages: Tables(*map(list, zip(*scaled(stages), strict=True))), len(tables), layers, streams)
    laps = []
    for stages in range(1, len(tables) + 1):
        for chosen in combinations(range(len(tables)), stages):
            some = [scaled(stages)[m] for m in chosen]
            for inner in combinations(range(1, layers), stages - 1):
                cut = list(pairwise([0, *inner, layers]))
                way = sum(float(t[1][c]) for t, c in zip(some, cut, strict=True))
                busy = max(float(t[0][c]) for t, c in zip(some, cut, strict=True))
                laps.append(max(way, microbatches(streams, stages) * busy))
    expected = min(laps, default=INF)
    assert expected == INF if found is None else found.lap == pytest.approx(expected)
