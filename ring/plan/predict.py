"""How fast a planned ring will be: the scheduler itself, run in simulated time on the plan's stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from ring.plan.cost import Load, StageCost, Work, transfer
from ring.plan.simulate import SimStage, simulate
from weights_tools.facts import ModelFacts

STEADY = 16
"""Tokens of each stream after which a decode rate no longer changes."""


class Prediction(msgspec.Struct, frozen=True):
    """So many `streams` at once: seconds to the first token (the mean, if all ask at the same moment), seconds between two
    tokens of a stream, and new tokens a second of all together while they decode."""

    streams: int
    ttft_s: float
    itl_s: float
    tokens_per_s: float


def predict(facts: ModelFacts, stages: Sequence[StageCost], load: Load) -> tuple[Prediction, Prediction]:
    """A lonely stream, and all of the load's at once."""
    return predict_streams(facts, stages, load, 1), predict_streams(facts, stages, load, load.streams)


def predict_streams(facts: ModelFacts, stages: Sequence[StageCost], load: Load, streams: int) -> Prediction:
    """One number of streams."""
    first = simulate(simulated(facts, stages), streams, load.prompt, 2)
    # Prompts of one token, so that all decode from the start, at the length that they have on average.
    steady = simulate(simulated(facts, stages, attended=load.attended), streams, 1, STEADY)
    gaps = sorted(steady.gaps_s)
    gap = gaps[len(gaps) // 2]
    return Prediction(streams, first.ttft_s, gap, streams / gap)


def simulated(facts: ModelFacts, stages: Sequence[StageCost], attended: float | None = None) -> list[SimStage]:
    """The stages as a simulation takes them; `attended` fixes how many tokens a decode step attends to."""
    return [sim_stage(facts, stage, len(stages) == 1, attended) for stage in stages]


def sim_stage(facts: ModelFacts, stage: StageCost, alone: bool, attended: float | None = None) -> SimStage:
    """One of them; `alone`, its messages go nowhere."""
    machine, last = stage.machine, stage.end == facts.layers

    def seconds(work: Work) -> float:
        return stage.seconds(work if attended is None else replace(work, attended=attended))

    def seconds_on_wire(rows: int) -> float:
        return 0.0 if alone else transfer(facts, machine, rows, last)

    return SimStage(seconds, seconds_on_wire, 0.0 if alone else machine.latency, machine.host, machine.at_once)
