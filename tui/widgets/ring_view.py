"""The ring as a picture: stages as boxes, hops between them, microbatches where they were one lap ago."""

from __future__ import annotations

from typing import NamedTuple

from rich.cells import cell_len
from textual.content import Content

from ring.wire.clients import StageStatus
from tui.state.bottleneck import bottleneck
from tui.state.condition import lost_stage
from tui.state.laps import end_ns, intervals, letter
from tui.state.model import Model
from tui.units import HUES, ms, percent, size
from tui.widgets.columns import fit
from tui.widgets.panel import Panel, Piece

HOP = 13
NARROWEST = 22
WIDEST = 40
FRESH_S = 1.0
IN_FLIGHT = 64


class Place(NamedTuple):
    """A microbatch at a stage: computing, waiting there, or on its way to the next."""

    name: str
    hue: str
    what: str


class RingView(Panel):
    """Boxes when there is room for them, one line when there is not; below, what holds the ring back."""

    DEFAULT_CSS = "RingView { height: auto; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }"

    def draw(self, model: Model) -> None:
        """Draw the ring as it stands."""
        stages = model.status.stages if model.status else []
        if not stages:
            return
        box = min(WIDEST, (self.size.width - 6 - HOP * (len(stages) - 1)) // len(stages))
        roomy = box >= NARROWEST and self.screen.size.height >= 32
        found = bottleneck(model.stats)
        slowest = found.stage if found else -1
        picture = boxes(model, stages, box, slowest) if roomy else line(model, stages, slowest)
        words: Piece = ("nothing has run in the last minute", "$muted")
        if found is not None:
            words = (f"{'▲ ' if slowest >= 0 else ''}{found.words}", "$text-warning")
        self.show(Content("\n").join([picture, Content.assemble(words)]))


def places(model: Model) -> dict[int, list[Place]]:
    """For each stage the microbatches that it held, or had sent on but not delivered, one lap ago.

    A lap's intervals are known only when it has come round, so the picture is of the last moment that is known whole.
    """
    found: dict[int, list[Place]] = {}
    laps = model.log.laps
    if not laps or model.last_lap_at is None or model.now - model.last_lap_at > FRESH_S:
        return found
    moment = laps[-1].started_ns + 1
    for index in range(max(-IN_FLIGHT, -len(laps)), 0):
        lap = laps[index]
        if not lap.started_ns <= moment < end_ns(lap):
            continue
        for part in intervals(lap):
            if part.arrived <= moment < part.left:
                what = "waits" if moment < part.started else "computes" if moment < part.finished else "travels"
                found.setdefault(part.stage, []).append(Place(letter(lap), HUES[lap.microbatch % len(HUES)], what))
    return found


def place_word(model: Model, stage: int) -> str:
    """What a stage does at that moment, in a word."""
    if lost_stage(model.status) == stage:
        return "lost"
    whats = {place.what for place in places(model).get(stage, [])}
    if "computes" in whats:
        return "computing"
    return "waiting" if model.condition == "running" else "idle"


def dots(held: list[Place], *whats: str) -> list[tuple[str, str]]:
    """Microbatches as ● when they are worked on or travel, as ○ when they wait."""
    return [(f"{'○' if place.what == 'waits' else '●'}{place.name} ", place.hue) for place in held if place.what in whats]


def line(model: Model, stages: list[StageStatus], slowest: int) -> Content:
    """The compact ring."""
    held, lost = places(model), lost_stage(model.status)
    parts: list[Piece] = []
    for stage in stages:
        info = stage.info
        mark = " ✗ lost" if info.stage == lost else " ▲" if info.stage == slowest else ""
        style = "bold $text-error" if info.stage == lost else "bold $text-warning" if mark else "bold"
        parts += [(f"{info.stage} {fit(info.host, min(10, cell_len(info.host)))}{mark}", style)]
        parts += [(f" {info.first_layer}-{info.end_layer - 1} ", "$muted")]
        inside = dots(held.get(info.stage, []), "waits", "computes", "travels")[:4]
        used = sum(len(text) for text, _ in inside)
        parts += [*inside, " " * max(0, 6 - used), ("↩" if stage is stages[-1] else "▸ ", "$muted")]
    return Content.assemble(*parts)


def boxes(model: Model, stages: list[StageStatus], width: int, slowest: int) -> Content:
    """Boxes, hops and the way back under them."""
    held, lost = places(model), lost_stage(model.status)
    margins: list[Piece] = ["  ", ("┌▶", "$muted"), *[("│ ", "$muted")] * 5]
    rows: list[list[Piece]] = [[margin] for margin in margins]
    for stage in stages:
        box = box_lines(model, stage, held.get(stage.info.stage, []), width, slowest, lost)
        last = stage is stages[-1]
        hop = hop_lines(model, stage.info.stage, held.get(stage.info.stage, []))
        for index, pieces in enumerate(box):
            rows[index] += [*pieces, *([] if last else hop[index])]
    rows[1].append(("─┐", "$muted"))
    for pieces in rows[2:]:
        pieces.append((" │", "$muted"))
    stats = model.stats.stages.get(stages[-1].info.stage)
    label = f" token ids {ms(stats.link.percentile(0.5) if stats else None)} "
    total = 2 + width * len(stages) + HOP * (len(stages) - 1)
    bottom = "└" + f"◀{label}".center(total, "─") + "┘"
    return Content("\n").join([*(Content.assemble(*row) for row in rows), Content.styled(bottom, "$muted")])


def box_lines(
    model: Model, stage: StageStatus, held: list[Place], width: int, slowest: int, lost: int | None
) -> list[list[Piece]]:
    """A stage's seven lines."""
    info, stats = stage.info, model.stats.stages.get(stage.info.stage)
    shares = stats.shares() if stats else None
    tail = " ✗ lost ─" if info.stage == lost else " ▲ slowest ─" if info.stage == slowest else ""
    colour = "$text-error" if info.stage == lost else "$text-warning" if tail else "$primary"
    inner = width - 4
    title = f"─ {info.stage} {fit(info.host, min(cell_len(info.host), inner - len(tail) - 4))} "
    ends = "embed · " if info.stage == 0 else ""
    ends_after = " · head" if info.stage == info.stages - 1 else ""
    here = dots(held, "computes", "waits")[: inner // 3 - 4]
    word = place_word(model, info.stage)
    used = sum(len(text) for text, _ in here)
    edge: Piece = ("│", colour)

    def inside(*pieces: Piece) -> list[Piece]:
        length = sum(cell_len(piece if isinstance(piece, str) else piece[0]) for piece in pieces)
        return [edge, " ", *pieces, " " * (inner - length), " ", edge]

    kv = stage.kv_used / info.kv_tokens if info.kv_tokens else 0.0
    return [
        [("╭" + title + "─" * (width - 2 - cell_len(title) - len(tail)) + tail + "╮", colour)],
        inside(fit(f"{ends}layers {info.first_layer}-{info.end_layer - 1}{ends_after}", inner)),
        inside((fit(f"{info.dtype} · {size(info.shard_bytes)} · RSS {size(stage.resident_bytes)}", inner), "$muted")),
        inside(*bar("busy", shares.busy if shares else 0.0, percent(shares.busy if shares else None), inner, "$text-primary")),
        inside(*bar("KV", kv, percent(kv), inner, "$text-secondary")),
        inside(*here, (fit(word, inner - used), "$muted")),
        [("╰" + "─" * (width - 2) + "╯", colour)],
    ]


def bar(name: str, share: float, text: str, inner: int, style: str) -> list[Piece]:
    """A share as a bar with its name and its figure."""
    length = inner - 5 - 6
    full = min(length, round(share * length))
    return [fit(name, 5), ("━" * full, style), ("─" * (length - full), "$faint"), fit(text, 6, right=True)]


def hop_lines(model: Model, stage: int, held: list[Place]) -> list[list[Piece]]:
    """What lies between a stage and the next: the median time, an arrow, and what is on its way."""
    stats = model.stats.stages.get(stage)
    latency = ms(stats.link.percentile(0.5) if stats else None)
    travelling = dots(held, "travels")[: HOP // 3 - 1]
    used = sum(len(text) for text, _ in travelling)
    blank: list[Piece] = [" " * HOP]
    return [
        blank,
        [("─" * (HOP - 1) + "▶", "$muted")],
        [(latency.center(HOP), "$muted")],
        [" ", *travelling, " " * (HOP - 1 - used)],
        blank,
        blank,
        blank,
    ]
