"""The plan: which machines take which layers, how fast that will be, and what holds it back."""

from __future__ import annotations

from typing import Literal

import msgspec

from ring.plan.cost import Load
from ring.plan.predict import Prediction
from weights_tools.planfile import PlannedCut, PlannedRange

Aim = Literal["throughput", "latency"]


class PlannedStage(PlannedRange, frozen=True):
    """A stage on its machine: bytes and seconds.

    `memory_bytes` is all that its node needs, of `memory_limit`. `step_s` is a decode step of the load's microbatch,
    `busy_s` the same with its share of prompts, `hop_s` the message to the next stage.
    """

    stage: int
    machine: str
    weight_bytes: int
    kv_bytes: int
    memory_bytes: int
    memory_limit: int
    step_s: float
    busy_s: float
    hop_s: float


class LeftOut(msgspec.Struct, frozen=True):
    """A machine that takes no part, and why."""

    machine: str
    reason: str


class Bottleneck(msgspec.Struct, frozen=True):
    """What holds the ring back under the asked load: a stage's `memory` (reading weights), `compute` or `overhead` (what a
    layer costs by itself), its `link`, or the `way` round, which more streams would fill. `stage` is -1 for that."""

    stage: int
    kind: Literal["memory", "compute", "overhead", "link", "way"]
    says: str


class OneMore(msgspec.Struct, frozen=True):
    """The ring with one more machine, like `machine`."""

    machine: str
    stages: int
    one: Prediction
    many: Prediction
    says: str


class Command(msgspec.Struct, frozen=True):
    """What to `run` on a machine; on any that has ring and the checkpoint, if `on` is empty."""

    on: str
    run: str


class Plan(PlannedCut, frozen=True):
    """A plan, as `plan.json` holds it: the cut, and what people want to know of it.

    `lap_s` is the time in which each of the load's streams gets a token, their prompts counted in; `one` predicts a lonely
    stream and `many` all of the load's at once.
    """

    stages: list[PlannedStage]
    aim: Aim
    load: Load
    left_out: list[LeftOut]
    lap_s: float
    one: Prediction
    many: Prediction
    bottleneck: Bottleneck
    one_more: OneMore | None
    commands: list[Command] = msgspec.field(default_factory=list)
