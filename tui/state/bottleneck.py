"""What holds the ring back, in words."""

from __future__ import annotations

from dataclasses import dataclass

from tui.state.stages import RingStats
from tui.units import ms, percent

FULL = 0.75


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """The stage that computes longest, -1 if none stands out by name, and what to make of it."""

    stage: int
    words: str


def bottleneck(stats: RingStats) -> Bottleneck | None:
    """What limits tokens a second; None while nothing has run in the last minute."""
    computes = {stage: stage_stats.sum("compute") for stage, stage_stats in stats.stages.items()}
    if not any(computes.values()):
        return None
    slowest = max(computes, key=lambda stage: computes[stage])
    shares = stats.stages[slowest].shares()
    if len(computes) == 1 or shares is None:
        return Bottleneck(-1, f"one stage: a token takes its compute, {ms(stats.stages[slowest].compute.percentile(0.5))}")
    compute = stats.stages[slowest].compute.percentile(0.5) or 0.0
    links = {stage: stage_stats.link.percentile(0.5) or 0.0 for stage, stage_stats in stats.stages.items()}
    widest = max(links, key=lambda stage: links[stage])
    if links[widest] > compute:
        onward = (widest + 1) % len(computes)
        return Bottleneck(
            slowest, f"the hop {widest} → {onward} takes {ms(links[widest])}; no stage computes longer than {ms(compute)}"
        )
    second = max(total for stage, total in computes.items() if stage != slowest)
    if shares.busy < FULL:
        return Bottleneck(
            slowest,
            f"stage {slowest} is slowest but {percent(shares.waiting)} without input: more prompts would fill the ring",
        )
    lead = computes[slowest] / second - 1 if second else 0.0
    if lead < 0.1:
        return Bottleneck(slowest, f"well balanced: the slowest, stage {slowest}, is busy {percent(shares.busy)}")
    return Bottleneck(
        slowest,
        f"stage {slowest} holds the ring back: busy {percent(shares.busy)}, {percent(lead)} more than the next",
    )
