from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weights_tools.partition import HEAD_TIME, PartitionError, balance, parse_layers


def value(costs: list[int], cut: list[tuple[int, int]], head: int, embedding: int) -> tuple[int, int, int]:
    times = [sum(costs[start:end]) for start, end in cut]
    sizes = list(times)
    times[-1] += round(HEAD_TIME * head)
    sizes[0] += embedding
    sizes[-1] += head
    return max(times), max(sizes), sum(time**2 for time in times)


@given(
    costs=st.lists(st.integers(1, 30), min_size=1, max_size=9),
    stages=st.integers(1, 9),
    head=st.integers(0, 60),
    embedding=st.integers(0, 60),
)
def test_balance_is_the_best_of_all_cuts(costs: list[int], stages: int, head: int, embedding: int) -> None:
    stages = min(stages, len(costs))
    every = []
    for inner in combinations(range(1, len(costs)), stages - 1):
        ends = [0, *inner, len(costs)]
        every.append(list(pairwise(ends)))
    cut = balance(costs, stages, head, embedding)
    assert cut in every
    assert value(costs, cut, head, embedding) == min(value(costs, other, head, embedding) for other in every)


def test_many_layers_on_many_stages() -> None:
    assert len(balance([7] * 126, 64, 20, 20)) == 64


def test_head_takes_layers_from_the_last_stage() -> None:
    assert balance([10] * 8, 2, head=67) == [(0, 6), (6, 8)]


@pytest.mark.parametrize(("stages", "says"), [(0, "at least one"), (5, "5 stages need 5 layers")])
def test_impossible_stages(stages: int, says: str) -> None:
    with pytest.raises(PartitionError, match=says):
        balance([1] * 4, stages)


def test_parse_layers() -> None:
    assert parse_layers("0-3, 4, 5-11", 12) == [(0, 4), (4, 5), (5, 12)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0-3,5-11", "layer 4 is in no range"),
        ("1-11", "layer 0 is in no range"),
        ("0-3", "layer 4 is in no range"),
        ("0-4,4-11", "two ranges"),
        ("4-11,0-3", "in no range before 4"),
        ("0-3,4-12", "layer 12 does not exist"),
        ("3-0,4-11", "ends before it starts"),
        ("", "is no range"),
        ("0-3,,4-11", "is no range"),
        ("a-b", "is no range"),
        ("-3", "is no range"),
        ("٠-٣", "is no range"),
    ],
)
def test_parse_layers_refuses(text: str, says: str) -> None:
    with pytest.raises(PartitionError, match=says):
        parse_layers(text, 12)
