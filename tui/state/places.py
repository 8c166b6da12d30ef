"""Where the microbatches are: at a stage, or on their way to the next."""

from __future__ import annotations

from typing import Literal, NamedTuple

from tui.state.laps import end_ns, intervals, letter
from tui.state.model import Model

IN_FLIGHT = 256


class Place(NamedTuple):
    """A microbatch at a stage. `share` is how much of that part is over."""

    number: int
    name: str
    what: Literal["waits", "computes", "travels"]
    share: float


def places(model: Model) -> dict[int, list[Place]]:
    """For each stage the microbatches that it held, or had sent on but not delivered, one lap ago.

    A lap's intervals are known only when it has come round, and messages gather for a while, so the picture lags by as much
    as that takes; from there it moves as time passes.
    """
    found: dict[int, list[Place]] = {}
    laps = model.log.laps
    if not laps or model.last_lap_at is None:
        return found
    moment = end_ns(laps[-1]) + 1 + int((model.now - model.last_lap_at - model.shown_for) * 1e9)
    for index in range(max(-IN_FLIGHT, -len(laps)), 0):
        lap = laps[index]
        if not lap.started_ns <= moment < end_ns(lap):
            continue
        for part in intervals(lap):
            for what, start, end in (
                ("waits", part.arrived, part.started),
                ("computes", part.started, part.finished),
                ("travels", part.finished, part.left),
            ):
                if start <= moment < end:
                    place = Place(lap.microbatch, letter(lap), what, (moment - start) / (end - start))  # type: ignore[arg-type]
                    found.setdefault(part.stage, []).append(place)
    return found
