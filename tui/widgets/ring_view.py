"""The ring as a picture: stages as boxes, hops between them, microbatches where they were one lap ago."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len

from ring.wire.clients import StageStatus
from tui.state.bottleneck import bottleneck
from tui.state.condition import lost_stage
from tui.state.model import Model
from tui.state.places import Place, places
from tui.units import HUES, ms, percent, size
from tui.widgets.columns import fit
from tui.widgets.panel import Line, Panel, Piece, entitle

HOP = 13
NARROWEST = 22
WIDEST = 40
ARROW, INSIDE, RETURN = 1, 5, 7
"""The lines of the boxes on which microbatches move."""
LEGEND = "● computes or travels  ○ waits"


@dataclass(frozen=True, slots=True)
class Figures:
    """What does not move: drawn anew twice a second."""

    slowest: int
    lost: int | None
    rows: list[Line]
    words: Piece


class RingView(Panel):
    """Boxes when there is room for them, one line when there is not; below, what holds the ring back."""

    DEFAULT_CSS = "RingView { padding: 0 1; }"

    _figures: Figures | None = None
    _width = 0

    def draw(self, model: Model, figures: bool) -> None:
        """Draw the ring as it stands; without `figures`, only what moves."""
        stages = model.status.stages if model.status else []
        if not stages:
            return
        box = min(WIDEST, (self.size.width - 4 - HOP * (len(stages) - 1)) // len(stages))
        width = box if box >= NARROWEST and self.screen.size.height >= 32 else 0
        if figures or self._figures is None or width != self._width:
            self._figures, self._width = still(model, stages, width), width
        held = places(model)
        picture = moving(model, stages, held, width, self._figures) if width else [line(stages, held, self._figures)]
        entitle(self, "ring", LEGEND if width else "")
        self.show([*picture, [self._figures.words]])


def stage_word(model: Model, stage: int) -> Piece:
    """A stage's state."""
    if lost_stage(model.status) == stage:
        return ("lost", "$text-error")
    words = {"running": ("running", "$text-success"), "broken": ("paused", "$text-warning")}
    return words.get(model.condition, ("idle", "$muted"))


def still(model: Model, stages: list[StageStatus], width: int) -> Figures:
    """The boxes with their figures, without microbatches; no rows if there is no `width` for boxes."""
    found, lost = bottleneck(model.stats), lost_stage(model.status)
    slowest = found.stage if found else -1
    words: Piece = ("nothing has run in the last minute", "$muted")
    if found is not None:
        words = (f"{'▲ ' if slowest >= 0 else ''}{found.words}", "$text-warning")
    if not width:
        return Figures(slowest, lost, [], words)
    rows: list[Line] = [[("│ " if index > ARROW else "  ", "$muted")] for index in range(RETURN + 1)]
    for stage in stages:
        number = stage.info.stage
        last = stage is stages[-1]
        stats = model.stats.stages.get(number)
        latency = ms(stats.link.percentile(0.5) if stats else None)
        for index, pieces in enumerate(box_lines(model, stage, width, slowest, lost)):
            rows[index] += pieces
            if not last:
                rows[index].append((latency.center(HOP), "$muted") if index == ARROW + 1 else " " * HOP)
            elif index > ARROW:
                rows[index].append((" │", "$muted"))
        if last:
            total = 2 + width * len(stages) + HOP * (len(stages) - 1)
            rows[RETURN] = [("└" + f"◀ token ids {latency} ".center(total, "─") + "┘", "$muted")]
    return Figures(slowest, lost, rows, words)


def moving(model: Model, stages: list[StageStatus], held: dict[int, list[Place]], width: int, figures: Figures) -> list[Line]:
    """The boxes with the microbatches in them and between them."""
    rows = list(figures.rows)
    arrow: Line = [("┌▶", "$muted")]
    inside: Line = [("│ ", "$muted")]
    for stage in stages:
        info, here = stage.info, held.get(stage.info.stage, [])
        edge: Piece = ("│", box_colour(info.stage, figures.slowest, figures.lost))
        ends, ends_after = "embed · " if info.stage == 0 else "", " · head" if info.stage == info.stages - 1 else ""
        layers = fit(f"{ends}layers {info.first_layer}-{info.end_layer - 1}{ends_after}", width - 4)
        arrow += [edge, f" {layers} ", edge]
        dots = [piece for place in here if place.what != "travels" for piece in dot(place)][: 2 * ((width - 4) // 3)]
        word = stage_word(model, info.stage) if not dots and model.condition != "running" else ""
        text = word if isinstance(word, str) else word[0]
        used = sum(cell_len(piece if isinstance(piece, str) else piece[0]) for piece in dots) + cell_len(text)
        inside += [edge, " ", *dots, word, " " * (width - 3 - used), edge]
        if stage is not stages[-1]:
            arrow += [*track("─" * (HOP - 1) + "▶", here, False)]
            inside.append(" " * HOP)
    arrow.append(("─┐", "$muted"))
    inside.append((" │", "$muted"))
    back = figures.rows[RETURN][0]
    rows[ARROW], rows[INSIDE] = arrow, inside
    rows[RETURN] = track(back[0], held.get(stages[-1].info.stage, []), True)
    return rows


def dot(place: Place) -> Line:
    """A microbatch: ● when it is worked on or travels, ○ when it waits."""
    return [(f"{'○' if place.what == 'waits' else '●'}{place.name}", HUES[place.number % len(HUES)]), " "]


def track(way: str, held: list[Place], leftwards: bool) -> Line:
    """A line with the microbatches that travel on it, as far as they have come."""
    pieces: Line = []
    free = [index for index in range(len(way) - 1) if way[index : index + 2] == "──"]
    at = 0
    marks = {}
    for place in held:
        if place.what == "travels" and free:
            share = 1 - place.share if leftwards else place.share
            marks[free[min(len(free) - 1, int(share * len(free)))]] = place
    for index in sorted(marks):
        if index >= at:
            pieces += [(way[at:index], "$muted"), dot(marks[index])[0]]
            at = index + 2
    return [*pieces, (way[at:], "$muted")]


def line(stages: list[StageStatus], held: dict[int, list[Place]], figures: Figures) -> Line:
    """The compact ring."""
    parts: Line = []
    for stage in stages:
        info = stage.info
        mark = " ✗ lost" if info.stage == figures.lost else " ▲" if info.stage == figures.slowest else ""
        style = "bold $text-error" if info.stage == figures.lost else "bold $text-warning" if mark else "bold"
        parts += [(f"{info.stage} {fit(info.host, min(10, cell_len(info.host)))}{mark}", style)]
        parts += [(f" {info.first_layer}-{info.end_layer - 1} ", "$muted")]
        dots = [dot(place)[0] for place in held.get(info.stage, [])][:3]
        parts += [*dots, " " * (7 - 2 * len(dots)), ("↩" if stage is stages[-1] else "▸ ", "$muted")]
    return parts


def box_colour(stage: int, slowest: int, lost: int | None) -> str:
    """Of a box's edge."""
    return "$text-error" if stage == lost else "$text-warning" if stage == slowest else "$primary"


def box_lines(model: Model, stage: StageStatus, width: int, slowest: int, lost: int | None) -> list[Line]:
    """A stage's seven lines; those on which microbatches move are empty."""
    info, stats = stage.info, model.stats.stages.get(stage.info.stage)
    shares = stats.shares() if stats else None
    tail = " ✗ lost ─" if info.stage == lost else " ▲ slowest ─" if info.stage == slowest else ""
    colour, inner = box_colour(info.stage, slowest, lost), width - 4
    title = f"─ {info.stage} {fit(info.host, min(cell_len(info.host), inner - len(tail) - 4))} "
    edge: Piece = ("│", colour)
    kv = stage.kv_used / info.kv_tokens if info.kv_tokens else 0.0
    memory = fit(f"{info.dtype} · {size(info.shard_bytes)} · RSS {size(stage.resident_bytes)}", inner)
    busy = bar("busy", shares.busy if shares else 0.0, percent(shares.busy if shares else None), inner, "$text-primary")
    return [
        [("╭" + title + "─" * (width - 2 - cell_len(title) - len(tail)) + tail + "╮", colour)],
        [],
        [edge, " ", (memory, "$muted"), " ", edge],
        [edge, " ", *busy, " ", edge],
        [edge, " ", *bar("KV", kv, percent(kv), inner, "$text-secondary"), " ", edge],
        [],
        [("╰" + "─" * (width - 2) + "╯", colour)],
    ]


def bar(name: str, share: float, text: str, inner: int, style: str) -> Line:
    """A share as a bar with its name and its figure."""
    length = inner - 5 - 6
    full = min(length, round(share * length))
    return [fit(name, 5), ("━" * full, style), ("─" * (length - full), "$faint"), fit(text, 6, right=True)]
