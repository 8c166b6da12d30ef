"""Hours of a busy ring, told to the dashboard's model as fast as it takes them."""

from __future__ import annotations

from ring.wire.clients import Event, LapRun, encoder, head_decoder
from tests.tui.scenes import pipeline
from tui.messages import Asked, Ended, Grew, Options
from tui.state.model import Model

TOKENS = 200
"""Of every prompt; four run at once, and as soon as one has ended another is asked."""


def live(model: Model, first: int, laps: int, rate: float) -> None:
    """So many laps at so many a second of the model's own time, from lap number `first` on, each with a token.

    Every lap is decoded from bytes, as one that came from a head.
    """
    frames = [encoder.encode(lap) for lap in pipeline(500, prompt=0)]
    for number in range(first, first + laps):
        at = number / rate
        turn, slot = divmod(number, 4)
        prompt, token = divmod(turn, TOKENS)
        stream = 1 + prompt * 4 + slot
        if token == 0:
            model.take(Asked(stream, f"prompt {stream}", Options()), at)
        lap = head_decoder.decode(frames[number % len(frames)])
        lap.microbatch, lap.started_ns = number, int(at * 1e9)  # type: ignore[union-attr]
        lap.runs = [LapRun(stream, token if token else 0, 1, token == 0)]  # type: ignore[union-attr]
        model.take(lap, at)  # type: ignore[arg-type]
        model.take(Grew(stream, stream, 1, f" word{token}"), at)
        if token == TOKENS - 1:
            model.take(Ended(stream, "length", "", "", 1, 0), at)
            model.take(Event(1, at, "info", -1, f"prompt {stream} has ended"), at)
        if number % 50 == 0:
            model.tick(at)
