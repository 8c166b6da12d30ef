"""One lap in numbers: every hop's moments and durations, as a bar and as a table whose parts add up to the lap."""

from __future__ import annotations

from ring.wire.clients import Lap
from tui.state.laps import intervals, letter, tokens
from tui.units import HUES, bare_ms, parts_of, size
from tui.widgets.columns import Column, heading, row
from tui.widgets.panel import Line, Panel

MOMENTS = (Column("stage", 5), Column("arrived", 7), Column("started", 7), Column("done", 7), Column("sent", 7))
PARTS = (Column("queue", 6), Column("compute", 7), Column("send", 6), Column("wire", 6))
BYTES = (Column("bytes in", 8), Column("share", 5))
RUNS = 6


class LapTable(Panel):
    """A lap's bar, table and runs."""

    DEFAULT_CSS = "LapTable { padding: 0 1; }"

    def draw(self, lap: Lap, above: list[Line] | None = None) -> None:
        """Show a lap, below further lines."""
        width = max(20, self.size.width)
        self.show([*(above or []), *bar_lines(lap, width), [""], *table_lines(lap, width >= 96)])

    def say(self, words: str) -> None:
        """Show a sentence instead."""
        self.show([[(words, "$muted")]])


def title(lap: Lap) -> str:
    """What it is and carries, in a line."""
    prefill = sum(run.count for run in lap.runs if run.prefill)
    decode = tokens(lap) - prefill
    words = [f"{prefill:,} prompt tokens"] if prefill else []
    words += [f"{decode} decode token{'' if decode == 1 else 's'}"] if decode else []
    sequences = f"{len(lap.runs)} sequence{'' if len(lap.runs) == 1 else 's'}"
    return f"microbatch {lap.microbatch} ({letter(lap)}) · {' + '.join(words)} of {sequences} · {lap.duration_ns / 1e6:.2f} ms"


def runs_line(lap: Lap) -> str:
    """Which sequences it carries, and which of their positions."""
    words = []
    for run in lap.runs[:RUNS]:
        span = f"{run.start}" if run.count == 1 else f"{run.start}-{run.start + run.count - 1}"
        words.append(f"#{run.sequence} {'prefill' if run.prefill else 'decode'} {span}")
    more = len(lap.runs) - RUNS
    return "runs: " + ", ".join(words) + (f" and {more} more" if more > 0 else "")


def bar_lines(lap: Lap, width: int) -> list[Line]:
    """The lap as one bar, each stage in its colour: waiting light, computing solid, on its way a line."""
    pieces: Line = []
    drawn, at = 0, 0
    for hop in lap.hops:
        hue = HUES[hop.stage % len(HUES)]
        for length, glyph in ((hop.queue_ns, "░"), (hop.compute_ns, "█"), (hop.send_ns + hop.wire_ns, "╌")):
            at += length
            until = round(at / max(1, lap.duration_ns) * width)
            cells = max(0, until - drawn)
            name = str(hop.stage)
            if glyph == "█" and cells > len(name):
                pieces.append((name, f"bold $background on {hue}"))
                cells -= len(name)
            pieces.append((glyph * cells, hue))
            drawn = max(drawn, until)
    return [pieces, [("░ queue  █ compute  ╌ send and wire; the number is the stage", "$muted")]]


def table_lines(lap: Lap, wide: bool) -> list[Line]:
    """Moments since the lap's start and durations, in milliseconds; the last row is the sum."""
    columns = (*MOMENTS, *PARTS, *(BYTES if wide else ()))
    flat = [part / 1e6 for hop in lap.hops for part in (hop.queue_ns, hop.compute_ns, hop.send_ns, hop.wire_ns)]
    shown = parts_of(flat)
    lines: list[Line] = [heading(columns)]
    for index, (hop, part) in enumerate(zip(lap.hops, intervals(lap), strict=True)):
        moments = [bare_ms(moment - lap.started_ns) for moment in (part.arrived, part.started, part.finished, part.sent)]
        durations = shown[4 * index : 4 * index + 4]
        own = hop.queue_ns + hop.compute_ns + hop.send_ns + hop.wire_ns
        extra = [size(hop.bytes), f"{own / max(1, lap.duration_ns) * 100:.0f} %"] if wide else []
        cells: Line = [(f"{hop.stage}", f"bold {HUES[hop.stage % len(HUES)]}"), *moments, *durations, *extra]
        lines.append(row(columns, cells))
    sums = [sum(float(value) for value in shown[kind::4]) for kind in range(4)]
    whole = sum(sums)
    total = [f"{value:.2f}" for value in sums]
    rest = [size(sum(hop.bytes for hop in lap.hops)), "100 %"] if wide else []
    lines.append(row(columns, [("sum", "bold"), "", "", "", f"{whole:.2f}", *((text, "bold") for text in total), *rest]))
    lines.append([(f"{' + '.join(total)} = {whole:.2f} ms, the lap", "$muted")])
    return lines
