"""What the pace makes of laps: full pipelines on machines of their own, trials on shared ones, chunks that fit."""

from __future__ import annotations

import pytest

from ring.head.pace import FIRST, Pace
from ring.wire.messages import BLOCK


def decode(pace: Pace, sequences: int, step: float, moving: float, laps: int = 200) -> None:
    """Laps of a ring whose stages take `step` seconds whatever the microbatch."""
    for _ in range(laps):
        groups = pace.groups(sequences)
        lap = max(pace.stages * step + moving, groups * step)
        pace.observe(-(-sequences // groups), sequences, groups, False, lap, [step] * pace.stages, moving)


def test_one_microbatch_a_stage_before_anything_is_known() -> None:
    assert [Pace(4).groups(n) for n in (1, 3, 4, 16)] == [1, 3, 4, 4]


def test_long_wires_take_more_microbatches_to_fill() -> None:
    pace = Pace(4)
    decode(pace, 16, step=0.02, moving=4 * 0.02)
    assert pace.depth == pace.groups(16) == 8


def test_hops_that_cost_little_take_none() -> None:
    pace = Pace(4)
    decode(pace, 16, step=0.02, moving=4 * 0.0005)
    assert pace.groups(16) == 4


def test_a_slow_stage_needs_fewer_microbatches() -> None:
    pace = Pace(4)
    for _ in range(100):
        pace.observe(1, 4, 4, False, 1.0, [0.1, 0.8, 0.05, 0.05], 0.0)
    assert pace.groups(16) == 1


def shared_machine(pace: Pace, contention: float, laps: int) -> list[int]:
    """Two stages whose steps take longer when both compute; returns the ways that were chosen."""
    chosen = []
    for _ in range(laps):
        groups = pace.groups(16)
        chosen.append(groups)
        step = 0.02 * (contention if groups == 2 else 1.1)
        pace.observe(16 // groups, 16, groups, False, 2 * step, [step, step], 0.0)
    return chosen


def test_where_stages_share_memory_fuller_microbatches_can_win() -> None:
    chosen = shared_machine(Pace(2, shared=True), 1.4, 2000)
    assert chosen[:FIRST] == [2] * FIRST
    assert chosen[2 * FIRST :].count(1) > 0.9 * len(chosen[2 * FIRST :])


def test_where_they_do_not_the_pipeline_stays_full() -> None:
    chosen = shared_machine(Pace(2, shared=True), 1.0, 2000)
    assert chosen.count(2) > 0.9 * len(chosen)
    assert set(shared_machine(Pace(2), 1.4, 200)) == {2}


def test_none_is_tried_where_one_that_is_alone_is_no_faster() -> None:
    pace = Pace(2, shared=True)
    pace.observe(1, 1, 1, False, 0.039, [0.019, 0.019], 0.001)
    assert set(shared_machine(pace, 1.0, 2000)) == {2}
    pace = Pace(2, shared=True)
    pace.observe(1, 1, 1, False, 0.031, [0.015, 0.015], 0.001)
    assert 1 in shared_machine(pace, 1.4, 2000)


def test_chunks_share_a_prompt_among_the_stages() -> None:
    assert Pace(1).chunk(1024, 0, 128) == 128
    assert Pace(4).chunk(1024, 0, 128) == 4 * BLOCK
    assert Pace(4).chunk(2000, 0, 128) == 8 * BLOCK
    assert Pace(4).chunk(100, 0, 128) == 2 * BLOCK
    assert [Pace(4).chunk(pending, 0, 128) for pending in (10, 23, 24)] == [10, 23, 16]


def test_short_chunks_say_nothing_of_what_a_token_costs() -> None:
    """Most of their time is what any microbatch takes: taken for the tokens' it would make chunks ever shorter."""
    pace = Pace(2)
    decode(pace, 1, step=0.02, moving=0.0)
    pace.observe(128, 0, 1, True, 0.4, [0.16, 0.16], 0.0)
    before = pace.chunk(1000, 1, 128)
    for _ in range(500):
        pace.observe(17, 1, 1, True, 0.06, [0.03, 0.03], 0.0)
    assert pace.chunk(1000, 1, 128) == before == 22
    for _ in range(500):
        pace.observe(128, 0, 1, True, 0.8, [0.32, 0.32], 0.0)
    assert pace.chunk(1000, 1, 128) < before


@pytest.mark.parametrize("alike", [8, 16, 32])
def test_no_chunk_is_so_short_that_a_longer_one_takes_no_more_time(alike: int) -> None:
    pace = Pace(8)
    decode(pace, 1, step=0.02, moving=0.0)
    pace.observe(128, 0, 1, True, 0.2, [0.02 * 128 / alike] * 8, 0.0)
    assert pace.chunk(64, 0, 128) == alike


def test_beside_a_stream_a_chunk_takes_little_longer_than_a_step() -> None:
    pace = Pace(2)
    decode(pace, 1, step=0.02, moving=0.0)
    pace.observe(128, 0, 1, True, 0.2, [0.064, 0.064], 0.0)
    assert 0.02 < pace.chunk(1000, 1, 128) * 0.0005 < 0.04
