"""How things stand, in words: the connection first, then the ring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ring.wire.clients import StageStatus, Status
from tui.messages import Link

Condition = Literal["connecting", "lost", "refused", "forming", "broken", "mismatch", "idle", "running"]


def condition(link: Link, status: Status | None, busy: bool) -> Condition:
    """The one word for it; `busy` is whether laps have come round lately."""
    if link.phase in ("lost", "refused", "connecting"):
        return link.phase
    if status is None:
        return "connecting"
    if status.state == "forming":
        return "broken" if status.stages else "forming"  # a head that knows its stages had a ring before
    if status.state == "mismatch":
        return "mismatch"
    return "running" if busy or status.running or status.waiting else "idle"


def lost_stage(status: Status | None) -> int | None:
    """The stage that a broken ring waits for, as far as the head could tell."""
    if status is None or status.state != "forming" or not status.stages:
        return None
    return status.missing


def stage_name(stage: StageStatus) -> str:
    """Such as `stage 1 (beta, layers 4-7)`."""
    info = stage.info
    return f"stage {info.stage} ({info.host}, layers {info.first_layer}-{info.end_layer - 1})"


@dataclass(frozen=True, slots=True)
class Words:
    """What a state's screen says: what is the matter, the reason, and what to do about it."""

    title: str
    reason: str
    advice: str


def describe(
    which: Condition, link: Link, status: Status | None, head: str, seconds: float, waiting: int, starting: bool
) -> Words:
    """The words for a state that has lasted `seconds`, with `waiting` streams of this dashboard unfinished; `starting` is
    whether the ring is being started together with the dashboard."""
    since, detail = f"{seconds:.0f} s", status.detail if status else ""
    match which:
        case "connecting" if starting:
            return Words(
                "The ring is starting",
                f"Its nodes read their shards, for {since}.",
                "You can type already: what you send waits until the ring has formed.",
            )
        case "connecting":
            return Words(
                f"Connecting to {head}",
                f"No head answers there yet: attempt {max(1, link.attempt)}, for {since}.",
                "Start a ring with `ring up`, or give the head's address: ring tui --head ADDR. This goes on by itself.",
            )
        case "lost":
            return Words(
                "Head lost, reconnecting",
                f"{head} has not answered for {since}: attempt {max(1, link.attempt)}.",
                "What is on screen is from before. This goes on by itself when the head is back, and so do the streams.",
            )
        case "refused":
            advice = "Tried again every few seconds. If it is this dashboard that must change, start it again."
            return Words("This head cannot be used", f"{link.detail}.", advice)
        case "forming":
            return Words(
                "The ring is forming",
                f"{detail}, for {since}.",
                "Start the nodes that are missing, in any order. Each says in its own output what it waits for.",
            )
        case "broken":
            lost = lost_stage(status)
            who = stage_name(status.stages[lost]) if status and lost is not None else "a stage"
            streams = f"{waiting} stream{'' if waiting == 1 else 's'} of yours wait{'s' if waiting == 1 else ''} for it"
            return Words(
                f"Lost {since} ago: {who}",
                f"{detail}; {streams}." if waiting else f"{detail}.",
                "Start its node again: the ring heals by itself and every stream goes on where it was.",
            )
        case "mismatch":
            return Words(
                "The ring cannot form", f"{detail}.", "The head tries again twice a second; correct that node and it goes on."
            )
        case "idle" | "running":
            return Words("Ready", "", "")
