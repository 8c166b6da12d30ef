"""Where to cut: contiguous ranges of layers, one a stage, so that the slowest stage is as fast as can be.

A decode step reads every weight of a stage once, so a stage's time is its layers' bytes, on the last stage with the LM
head's. A byte of the LM head counts less: it is one wide product, where a layer has several narrow ones and attention
besides. Of the embedding a step reads a row per token: it costs memory on stage 0, but no time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate

Ranges = list[tuple[int, int]]
"""Each stage's first layer, and the one after its last."""
Weigh = Callable[[int, int, int], int]
HEAD_TIME = 0.6
"""Time that a byte of the LM head takes, where a layer's takes 1: measured on GPT-2 Small, 8 sequences, 0.63 in float32
and 0.56 in bfloat16."""


class PartitionError(ValueError):
    """Layers that cannot be cut as asked; the message is one sentence that says why."""


def balance(costs: Sequence[int], stages: int, head: int = 0, embedding: int = 0) -> Ranges:
    """Cut the layers into `stages` contiguous ranges.

    Of all cuts: the largest stage's time is least; among those, the largest stage's bytes; among those, the sum of
    squared times, which is least when the work is even. The result is exact and always the same.

    Args:
        costs: bytes of each layer.
        stages: how many ranges.
        head: bytes of what runs after the last layer (norm, LM head).
        embedding: bytes of what runs before the first.

    Raises:
        PartitionError: fewer layers than stages, or no stage at all.
    """
    layers = len(costs)
    check_stages(layers, stages)
    sums = [0, *accumulate(costs)]

    def time(start: int, end: int, stage: int) -> int:
        return sums[end] - sums[start] + (round(head * HEAD_TIME) if stage == stages - 1 else 0)

    def size(start: int, end: int, stage: int) -> int:
        return sums[end] - sums[start] + (head if stage == stages - 1 else 0) + (embedding if stage == 0 else 0)

    def within(weigh: Weigh, limit: int, value: Weigh) -> Weigh:
        return lambda start, end, stage: value(start, end, stage) if weigh(start, end, stage) <= limit else IMPOSSIBLE

    slowest, _ = best_cut(layers, stages, time, max)
    largest, _ = best_cut(layers, stages, within(time, slowest, size), max)
    fits = within(size, largest, within(time, slowest, lambda *cut: time(*cut) ** 2))
    _, ends = best_cut(layers, stages, fits, lambda a, b: a + b)
    return list(zip([0, *ends], ends, strict=False))


IMPOSSIBLE = 1 << 200


def best_cut(layers: int, stages: int, weigh: Weigh, fold: Callable[[int, int], int]) -> tuple[int, list[int]]:
    """The least value of a cut, and where its stages end.

    Dynamic programming over the first `end` layers on the first stages. A stage's weight must grow with its layers and
    `fold` with both arguments, so that a search for a stage's start may stop as soon as the stage alone weighs too much.
    """
    before = [0] + [IMPOSSIBLE] * layers
    choices: list[list[int]] = []
    for stage in range(stages):
        after, choice = [IMPOSSIBLE] * (layers + 1), [0] * (layers + 1)
        for end in range(stage + 1, layers - (stages - stage - 1) + 1):
            for start in range(end - 1, stage - 1, -1):
                weight = weigh(start, end, stage)
                if weight >= after[end]:
                    break
                value = fold(before[start], weight)
                if value < after[end]:
                    after[end], choice[end] = value, start
        before = after
        choices.append(choice)
    ends = [layers]
    for choice in reversed(choices[1:]):
        ends.insert(0, choice[ends[0]])
    return before[layers], ends


def check_stages(layers: int, stages: int) -> None:
    """Raises PartitionError unless every stage can have a layer."""
    if stages < 1:
        raise PartitionError("a ring needs at least one stage")
    if stages > layers:
        raise PartitionError(f"{stages} stages need {stages} layers, the model has {layers}; ask for {layers} stages or fewer")


def parse_layers(text: str, layers: int) -> Ranges:
    """Read ranges such as `0-3,4-11` (both ends included) that must hold every layer once, in order.

    Raises:
        PartitionError: not ranges, or a gap, an overlap, the wrong order or a layer that does not exist.
    """
    ranges: Ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part, re.ASCII)
        if match is None:
            raise PartitionError(f"'{part.strip()}' is no range of layers; write them as 0-3,4-11")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise PartitionError(f"the range {part.strip()} ends before it starts; write the smaller number first")
        ranges.append((first, last + 1))
    check_ranges(ranges, layers)
    return ranges


def check_ranges(ranges: Ranges, layers: int) -> None:
    """Raises PartitionError unless the ranges hold layers 0 to `layers - 1`, each once and in order."""
    expected = 0
    for first, end in ranges:
        if end > layers:
            raise PartitionError(f"layer {end - 1} does not exist; the model has layers 0 to {layers - 1}")
        if first > expected:
            raise PartitionError(f"layer {expected} is in no range before {first}; ranges follow each other without gaps")
        if first < expected:
            raise PartitionError(f"layer {first} is in two ranges or out of order; give every layer once, in order")
        expected = end
    if expected < layers:
        raise PartitionError(f"layer {expected} is in no range; the model has layers 0 to {layers - 1}")
