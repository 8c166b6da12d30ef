"""The last laps as a Gantt chart: one row a stage, time to the right, one colour and letter a microbatch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from ring.wire.clients import Lap
from tui.state.bottleneck import bottleneck
from tui.state.laps import end_ns, intervals, letter, prefills
from tui.state.model import Model
from tui.units import HUES, percent
from tui.widgets.columns import fit
from tui.widgets.panel import Line, Panel

LABEL = 11
TAIL = 11
STEPS = [base * 10**power for power in range(5, 11) for base in (1, 2, 5)]
"""Spans of time that fill the width, in nanoseconds: 0.1 ms to 50 s."""
COLUMNS_A_LAP = 14
MOST = 3000


@dataclass(slots=True)
class Lane:
    """One stage's columns: what computes and what waits in each, and for how much of it the stage computes."""

    owner: list[Lap | None]
    cover: list[float]
    waiting: list[Lap | None]

    @classmethod
    def empty(cls, columns: int) -> Lane:
        """A lane in which nothing happens."""
        return cls([None] * columns, [0.0] * columns, [None] * columns)


class Gantt(Panel, can_focus=True):
    """Follows the ring until it is paused; a chosen lap pauses it."""

    DEFAULT_CSS = "Gantt { height: 1fr; min-height: 4; padding: 0 1; }"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "pause", "Pause"),
        Binding("left", "choose(-1)", "Lap", key_display="←→"),
        Binding("right", "choose(1)", "Lap after", show=False),
        Binding("plus,equals_sign", "zoom(-1)", "Zoom", key_display="+-"),
        Binding("minus", "zoom(1)", "Zoom out", show=False),
        Binding("pageup,shift+left,h", "scroll(-0.5)", "Scroll", key_display="PgUp/Dn"),
        Binding("pagedown,shift+right,l", "scroll(0.5)", "Scroll on", show=False),
        Binding("home", "oldest", "Oldest", show=False),
        Binding("end", "live", "Live", key_display="End"),
    ]

    class Changed(Message):
        """Another lap is chosen, or none."""

    def __init__(self) -> None:
        super().__init__()
        self._model: Model | None = None
        self._span = 0
        self._zoomed = False
        self._end: int | None = None  # where the picture was stopped, on the head's clock
        self._chosen = -1  # a lap's number since the dashboard started
        self._lanes: dict[int, Lane] = {}

    @property
    def paused(self) -> bool:
        """Whether the picture stands."""
        return self._end is not None

    @property
    def chosen(self) -> Lap | None:
        """The lap that was picked."""
        if self._model is None or self._chosen < 0:
            return None
        log = self._model.log
        index = self._chosen - (log.total - len(log.laps))
        return log.laps[index] if 0 <= index < len(log.laps) else None

    # ---- keys and mouse ----

    def action_pause(self) -> None:
        """Stop the picture where it is, or follow the ring again."""
        if self.paused:
            self.action_live()
        elif self._model and self._model.log.laps:
            self._end = self._right_edge(self._model)
            self._changed()

    def action_live(self) -> None:
        """Follow the ring."""
        self._end, self._chosen = None, -1
        self._changed()

    def action_oldest(self) -> None:
        """The first lap that is still known."""
        if self._model and self._model.log.laps:
            self._choose(self._model.log.total - len(self._model.log.laps))

    def action_choose(self, laps: int) -> None:
        """Pick the lap before or after the chosen one; the newest to begin with."""
        if self._model and self._model.log.laps:
            newest = self._model.log.total - 1
            self._choose(min(newest, self._chosen + laps) if self._chosen >= 0 else newest)

    def action_zoom(self, steps: int) -> None:
        """Show more or less time."""
        nearest = min(range(len(STEPS)), key=lambda index: abs(STEPS[index] - self._span))
        self._span, self._zoomed = STEPS[max(0, min(len(STEPS) - 1, nearest + steps))], True
        self._changed()

    def action_scroll(self, widths: float) -> None:
        """Move through time by a part of what is in sight; past the newest lap the picture is live again."""
        if self._model and self._model.log.laps:
            laps = self._model.log.laps
            end = self._right_edge(self._model) + int(widths * self._span)
            self._end = max(end, laps[0].started_ns + self._span // 2)
            if self._end >= end_ns(laps[-1]):
                self._end = None
            self._changed()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel moves through time."""
        self.action_scroll(-0.1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """The wheel moves through time."""
        self.action_scroll(0.1)

    def on_click(self, event: events.Click) -> None:
        """Pick the lap under the mouse."""
        offset = event.get_content_offset(self)
        if offset is None or self._model is None or not self._lanes:
            return
        stage, column = offset.y // self._thickness(), offset.x - LABEL
        lanes = [self._lanes[number] for number in sorted(self._lanes)]
        if 0 <= stage < len(lanes) and 0 <= column < len(lanes[stage].owner):
            lap = lanes[stage].owner[column] or lanes[stage].waiting[column]
            if lap is not None:
                log = self._model.log
                self._choose(log.total - len(log.laps) + log.laps.index(lap))

    def _choose(self, number: int) -> None:
        assert self._model is not None
        self._chosen = max(number, self._model.log.total - len(self._model.log.laps))
        lap = self.chosen
        if lap is not None:
            end = self._right_edge(self._model)
            inside = end - self._span <= lap.started_ns and end_ns(lap) <= end
            self._end = end if inside else end_ns(lap) + self._span // 4
        self._changed()

    def _changed(self) -> None:
        if self._model:
            self.draw(self._model)
        self.post_message(self.Changed())

    # ---- the picture ----

    def _right_edge(self, model: Model) -> int:
        return self._end if self._end is not None else end_ns(model.log.laps[-1])

    def _thickness(self) -> int:
        """Lines for each stage."""
        return max(1, min(7, (self.size.height - 1) // max(1, len(self._lanes))))

    def draw(self, model: Model) -> None:
        """Draw what is in sight."""
        self._model = model
        columns = self.size.width - LABEL - TAIL
        if columns < 8 or not model.log.laps:
            self.show([])
            return
        self._fit_span(model, columns)
        end = self._right_edge(model)
        start = end - self._span
        laps = model.log.between(start, end, MOST)
        stages = sorted({hop.stage for lap in laps for hop in lap.hops} or model.stats.stages)
        self._lanes = {stage: Lane.empty(columns) for stage in stages}
        for lap in laps:
            place(lap, self._lanes, start, self._span / columns)
        found, chosen, thickness = bottleneck(model.stats), self.chosen, self._thickness()
        hosts = {stage.info.stage: stage.info.host for stage in (model.status.stages if model.status else [])}
        lines: list[Line] = []
        for stage, lane in self._lanes.items():
            slowest = found is not None and found.stage == stage
            busy = sum(lane.cover) / columns
            label = (fit(f"{stage} {hosts.get(stage, '')}", LABEL - 3) + (" ▲ " if slowest else "   "))[:LABEL]
            style = "bold $text-warning" if slowest else "bold"
            first, body = computing_line(lane, chosen, True), computing_line(lane, chosen, False)
            blank, tail = " " * LABEL, (f" busy {percent(busy):>5}", "$muted")
            lines.append([(label, style), *first, tail])
            below: list[Line] = [*[[blank, *body]] * (thickness - 2), [blank, *waiting_line(lane, chosen)]]
            if thickness > 1:
                second = body if thickness > 2 else waiting_line(lane, chosen)
                below[0] = [blank, *second, (f"  gap {percent(1 - busy):>5}", "$muted")]
                lines += below
        lines.append([axis(columns, self._span)])
        self.show(lines)

    def _fit_span(self, model: Model, columns: int) -> None:
        """Unless zoomed, a span in which some laps fit; it changes only when laps become much longer or shorter."""
        median = model.stats.lap.percentile(0.5) or float(model.log.laps[-1].duration_ns)
        ideal = median * columns / COLUMNS_A_LAP
        if self._span == 0 or (not self._zoomed and not self.paused and not 0.4 < self._span / ideal < 2.5):
            self._span = next((step for step in STEPS if step >= ideal), STEPS[-1])


def place(lap: Lap, lanes: dict[int, Lane], start: int, per_column: float) -> None:
    """Put a lap's intervals into the stages' columns."""
    for part in intervals(lap):
        lane = lanes[part.stage]
        columns = len(lane.cover)
        first, last = (part.arrived - start) / per_column, (part.started - start) / per_column
        for column in range(max(0, int(first)), min(columns, int(last) + 1)):
            if min(last, column + 1) - max(first, column) > 0.5 and lane.waiting[column] is None:
                lane.waiting[column] = lap
        first, last = last, (part.finished - start) / per_column
        for column in range(max(0, int(first)), min(columns, int(last) + 1)):
            share = min(last, column + 1) - max(first, column)
            if share > 0:
                if lane.owner[column] is None or share > lane.cover[column] / 2:
                    lane.owner[column] = lap
                lane.cover[column] = min(1.0, lane.cover[column] + share)


def computing_line(lane: Lane, chosen: Lap | None, named: bool) -> Line:
    """Blocks: solid for decode, hatched for prefill, the microbatch's letter at the beginning of each."""
    pieces: Line = []
    before: Lap | None = None
    for column, lap in enumerate(lane.owner):
        cover = lane.cover[column]
        if lap is None or cover < 0.1:
            pieces.append(("·" if named else " ", "$faint"))
            before = None
            continue
        hue = "$foreground" if lap is chosen else HUES[lap.microbatch % len(HUES)]
        wide = column + 1 < len(lane.owner) and lane.owner[column + 1] is lap
        if named and lap is not before and wide:
            pieces.append((letter(lap), f"bold $background on {hue}"))
        else:
            pieces.append(("▒" if prefills(lap) else "█" if cover >= 0.5 else "▌", hue))
        before = lap
    return merged(pieces)


def waiting_line(lane: Lane, chosen: Lap | None) -> Line:
    """Below the blocks: microbatches that have arrived and wait."""
    pieces: Line = []
    for lap in lane.waiting:
        if lap is None:
            pieces.append(" ")
        else:
            pieces.append(("╌", "$foreground" if lap is chosen else HUES[lap.microbatch % len(HUES)]))
    return merged(pieces)


def merged(pieces: Line) -> Line:
    """Neighbours of one style as one piece."""
    runs: Line = []
    for style, group in groupby(pieces, lambda piece: "" if isinstance(piece, str) else piece[1]):
        runs.append(("".join(piece if isinstance(piece, str) else piece[0] for piece in group), style))
    return runs


def axis(columns: int, span: int) -> tuple[str, str]:
    """The time before the right edge, in milliseconds."""
    line = [" "] * (LABEL + columns)
    ticks = max(1, columns // 20)
    for tick in range(ticks + 1):
        value = span * (ticks - tick) / ticks / 1e6
        text = f"-{value:.0f} ms" if value >= 10 else f"-{value:.1f} ms" if value else "0"
        at = LABEL + round(columns * tick / ticks) - (len(text) if tick else 0)
        line[at : at + len(text)] = text
    return "".join(line)[: LABEL + columns], "$muted"
