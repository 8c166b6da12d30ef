"""The best cut of layers over machines, exactly: which machines take part, in which order, and which layers each has.

A cut is judged by its lap: the time in which every stream gets a token. The streams are divided over as many microbatches
as there are stages, and the lap is the larger of a microbatch's way round and of what the busiest stage needs for all of
them. The best of all cuts is found by dynamic programming over contiguous ranges: once for the least bottleneck, once for
the shortest way round within it, and where the two pull apart, by bisection over all possible bottlenecks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ring.plan.search import EPSILON, Choice, Search, Tables, is_better


def best(
    tables: Callable[[int], Tables],
    machines: int,
    layers: int,
    streams: int,
    any_order: bool = False,
    must: int | None = None,
    tolerance: float = 0.0,
) -> Choice | None:
    """The best cut: no other has a shorter lap by more than `tolerance`, a share of it; and of all those, the busiest stage
    has the least to do, as that leaves most room for prompts and further streams; and of those, the fewest machines. The
    other stages' times are as even as that allows.

    Args:
        tables: told how many stages are used, what machines take then (microbatches of fewer sequences are faster, and a
            ring of one has no links).
        machines: how many there are.
        layers: how many to place.
        streams: sequences at once; one asks for the shortest way round alone.
        any_order: try every order of the machines, not just the given one; for few machines.
        must: a machine that has to take part.

    Returns:
        None if nothing fits.
    """
    searches = []
    for stages in range(1, min(machines, layers) + 1):
        groups = groups_of(streams, rows_of(streams, stages))
        searches.append(Search(tables(stages), stages, groups, any_order, must))
    lap = np.inf
    for search in sorted(searches, key=lambda search: search.least_lap):
        if search.least_lap < lap:
            lap = min(lap, search.shortest_lap(lap))
    if lap == np.inf:
        return None
    limit = lap * (1 + max(tolerance, EPSILON))
    choice: Choice | None = None
    for search in sorted(searches, key=lambda search: (search.least_work, search.stages)):
        if search.least_lap > limit or (choice is not None and not is_better(search.least_work, search.stages, choice)):
            continue
        other = search.most_even(limit, choice)
        if other is not None and (choice is None or is_better(other.work, search.stages, choice)):
            choice, found = other, search
    return choice and found.smoothed(choice, limit)


def rows_of(streams: int, stages: int) -> int:
    """Sequences in a microbatch when so many streams fill so many stages, as the scheduler divides them."""
    return -(-streams // min(stages, streams))


def groups_of(streams: int, rows: int) -> int:
    """Microbatches of so many sequences."""
    return -(-streams // rows)
