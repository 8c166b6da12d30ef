"""`ring bench simulate`: rings of any size in simulated time, by the scheduler that real ones have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ring.plan.cost import StageCost
from ring.plan.machines import Machine
from ring.plan.predict import simulated
from ring.plan.simulate import Outage, Outcome, Request, SimStage, Simulation, SimulationError
from weights_tools.facts import ModelFacts
from weights_tools.partition import balance


@dataclass(slots=True)
class Simulated:
    """What a simulated ring did. Times in seconds; `tokens_per_s` counts prompts' time too, `decode_per_s` only while all
    streams decode (None where they never all did); `bubble` is the share of the stages' time in which they computed
    nothing."""

    stages: int
    streams: int
    tokens_per_s: float
    decode_per_s: float | None
    ttft_s: float
    itl_s: float
    itl_p99_s: float
    bubble: float
    wall_s: float
    laps: int


def fixed_stages(steps_s: Sequence[float], token_s: float, latency: float) -> list[SimStage]:
    """Stages that take a fixed time, or `token_s` for each token if that is longer, as `ring bench pipeline` emulates them."""
    return [
        SimStage(lambda work, step=step: max(step, token_s * (work.decodes + work.prefill)), latency=latency)  # type: ignore[misc]
        for step in steps_s
    ]


def model_stages(facts: ModelFacts, machine: Machine, stages: int) -> list[SimStage]:
    """A model on equal machines, in as many stages, cut evenly; memory is not looked at."""
    ranges = balance(facts.layer_bytes, stages, facts.head_bytes, facts.embedding_bytes)
    return simulated(facts, [StageCost(facts, machine, start, end) for start, end in ranges])


def run(
    stages: Sequence[SimStage], streams: int, prompt: int, new_tokens: int, every_s: float, outages: Sequence[Outage]
) -> Simulated:
    """Streams that come all at once, or one every so many seconds."""
    requests = [Request(prompt, new_tokens, number * every_s) for number in range(streams)]
    return summarize(Simulation(stages, requests, outages).run())


def summarize(done: Outcome) -> Simulated:
    """The figures of an outcome."""
    gaps = sorted(done.round.gaps_s) or [0.0]
    return Simulated(
        stages=len(done.busy),
        streams=len(done.requests),
        tokens_per_s=done.round.rate,
        decode_per_s=done.round.decode_rate or None,
        ttft_s=done.ttft_s,
        itl_s=median(gaps),
        itl_p99_s=gaps[int(0.99 * (len(gaps) - 1))],
        bubble=done.bubble,
        wall_s=done.round.wall_s,
        laps=done.laps,
    )


def parse_outage(text: str) -> Outage:
    """`STAGE:AT:SECONDS`.

    Raises:
        SimulationError: anything else.
    """
    try:
        stage, at, seconds = text.split(":")
        return Outage(int(stage), float(at), float(seconds))
    except ValueError:
        raise SimulationError(f"'{text}' is no outage; write STAGE:AT:SECONDS, such as 2:10:30") from None


def line(s: Simulated) -> str:
    """A result in a line."""
    decode = f"{s.decode_per_s:.4g}" if s.decode_per_s else "-"
    return (
        f"{s.stages:4d} stages, {s.streams:4d} streams: {s.tokens_per_s:.4g} tokens/s with prompts, {decode} decoding; "
        f"first token {s.ttft_s:.4g} s; between tokens {s.itl_s:.4g} s (p99 {s.itl_p99_s:.4g}); bubble {s.bubble:.0%}; "
        f"{s.wall_s:,.4g} s in all"
    )
