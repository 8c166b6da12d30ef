"""The table of stages: the last minute in figures, and the mean lap as a sum of its parts."""

from __future__ import annotations

from ring.wire.clients import StageStatus
from tui.state.bottleneck import bottleneck
from tui.state.model import Model
from tui.state.stages import StageStats
from tui.units import NOTHING, bare_ms, ms, parts_of, percent, size, sparkline
from tui.widgets.columns import Column, fit, heading, row
from tui.widgets.panel import Line, Panel
from tui.widgets.ring_view import stage_word

FULL = (
    Column("stage", 13, False),
    Column("state", 9, False),
    Column("p50", 6),
    Column("p95", 6),
    Column("p50", 6),
    Column("p95", 6),
    Column("p50", 6),
    Column("p95", 6),
    Column("busy", 5),
    Column("wait", 5),
    Column("block", 5),
    Column("tok/s", 6),
    Column("bytes/s", 7),
    Column("", 20, False),
)
GROUPS = (
    f"{'':24}{'queue ms':>16}{'compute ms':>16}{'send+wire ms':>16}{'share of time':>21}{'last 10 s':>17}  compute, last 60 s"
)
SMALL = (
    Column("stage    ms", 11, False),
    Column("queue", 6),
    Column("comp", 6),
    Column("p95", 6),
    Column("wire", 6),
    Column("busy", 5),
    Column("wait", 5),
    Column("block", 5),
    Column("60 s", 10, False),
)


class StageTable(Panel):
    """One row for each stage, and what a lap is made of."""

    DEFAULT_CSS = "StageTable { padding: 0 1; }"

    def draw(self, model: Model) -> None:
        """Draw all stages."""
        if model.status is None:
            return
        full = self.size.width >= 132
        columns = FULL if full else SMALL
        found = bottleneck(model.stats)
        lines: list[Line] = [[(GROUPS, "$muted")]] if full else []
        lines.append(heading(columns))
        for stage in model.status.stages:
            slowest = found is not None and found.stage == stage.info.stage
            stats = model.stats.stages.get(stage.info.stage)
            lines.append(row(columns, (full_cells if full else small_cells)(model, stage, stats, slowest)))
        lines.append(lap_line(model, full))
        self.show(lines)


def full_cells(model: Model, stage: StageStatus, stats: StageStats | None, slowest: bool) -> Line:
    """All figures of a stage."""
    style = "bold $text-warning" if slowest else ""
    name = f"{stage.info.stage} {stage.info.host}"
    name = f"{fit(name, 11)} ▲" if slowest else name
    if stats is None:
        return [name, stage_word(model, stage.info.stage), *[NOTHING] * 11, ""]
    shares = stats.shares()
    percentiles = [bare_ms(h.percentile(p)) for h in (stats.queue, stats.compute, stats.link) for p in (0.5, 0.95)]
    spent = [NOTHING] * 3 if shares is None else [percent(s) for s in (shares.busy, shares.waiting, shares.blocked)]
    rates = [f"{stats.rate(model.now, 'tokens'):.0f}", size(stats.rate(model.now, "bytes"))]
    spark = (sparkline(stats.sparkline(model.now, 20)), "$text-primary")
    return [(name, style), stage_word(model, stage.info.stage), *percentiles, *spent, *rates, spark]


def small_cells(model: Model, stage: StageStatus, stats: StageStats | None, slowest: bool) -> Line:
    """What is essential, on a small screen."""
    name = f"{stage.info.stage} {fit(stage.info.host, 7)}{' ▲' if slowest else ''}"
    style = "bold $text-warning" if slowest else ""
    if stats is None:
        return [name, *[NOTHING] * 7, ""]
    shares = stats.shares()
    measures = ((stats.queue, 0.5), (stats.compute, 0.5), (stats.compute, 0.95), (stats.link, 0.5))
    times = [bare_ms(histogram.percentile(share)) for histogram, share in measures]
    spent = [NOTHING] * 3 if shares is None else [percent(s) for s in (shares.busy, shares.waiting, shares.blocked)]
    return [(name, style), *times, *spent, (sparkline(stats.sparkline(model.now, 10)), "$text-primary")]


def lap_line(model: Model, full: bool) -> Line:
    """The mean lap: its parts, as they are shown, add up to the whole, as it is shown."""
    lap = model.stats.mean_lap()
    if lap is None:
        return [("a lap: nothing has gone round in the last minute", "$muted")]
    parts = [lap.queue / 1e6, lap.compute / 1e6, lap.send / 1e6, lap.wire / 1e6]
    shown = parts_of(parts)
    whole = parts_of([sum(parts)])[0]
    named = " + ".join(f"{name} {part}" for name, part in zip(("queue", "compute", "send", "wire"), shown, strict=True))
    line: Line = [("a lap ", "$muted"), (f"{whole} ms", "bold"), (f" = {named}", "")]
    if full:
        p50, p95 = (ms(model.stats.lap.percentile(share)) for share in (0.5, 0.95))
        line.append((f"   mean of {lap.laps:,} laps in 60 s, p50 {p50}, p95 {p95}", "$muted"))
    return line
