"""A plan for people: a table, a picture of the ring, and the commands that make it."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ring.plan.plan import Plan, PlannedStage
from ring.plan.predict import Prediction
from ring.plan.units import show_bytes, show_rate, show_time


def show_plan(plan: Plan, assumed: str, beside: str, width: int) -> RenderableType:
    """All of a plan, for a terminal of so many columns. `assumed` says what was not measured, `beside` where its commands
    are to be run."""
    load = plan.load
    total = sum(stage.weight_bytes for stage in plan.stages)
    head = Text.assemble(
        (f"{plan.model} · {plan.dtype} · {show_bytes(total)} on {machines_text(len(plan.stages))}", "bold"),
        f"  for {plan.aim}: {load.streams} streams, prompts of {load.prompt}, {load.new_tokens} new tokens, "
        f"KV cache for {load.context:,} tokens each",
    )
    parts: list[RenderableType] = [head, Text(picture(plan, width)), stage_table(plan), Text(), prediction_table(plan)]
    parts.append(Text.assemble(("\nbottleneck: ", "bold"), plan.bottleneck.says))
    if plan.one_more is not None:
        parts.append(Text(plan.one_more.says))
    if plan.left_out:
        reasons: dict[str, list[str]] = {}
        for machine in plan.left_out:
            reasons.setdefault(machine.reason, []).append(machine.machine)
        for reason, names in reasons.items():
            parts.append(Text.assemble(("left out: ", "yellow"), f"{', '.join(names)}: {reason}"))
    if assumed:
        parts.append(Text(assumed, "dim"))
    if plan.commands:
        parts.append(Text.assemble(("\nto run it", "bold"), f", {beside}:"))
        longest = max(len(command.on) for command in plan.commands)
        parts += [Text(f"{command.on + '$':>{longest + 1}} {command.run}") for command in plan.commands]
    return Group(*parts)


def machines_text(count: int) -> str:
    """A number of machines in words."""
    return "one machine" if count == 1 else f"{count} machines"


def picture(plan: Plan, columns: int) -> str:
    """The ring as boxes with links between them, a few in a line, the last one's link going back to the first."""
    boxes = [box(stage, plan) for stage in plan.stages]
    width = max(len(line) for lines in boxes for line in lines)
    boxes = [[line.center(width) for line in lines] for lines in boxes]
    joint = 11
    a_line = max(1, columns // (width + 2 + joint))
    rows = []
    for first in range(0, len(boxes), a_line):
        lines = ["", "", "", "", ""]
        for number in range(first, min(first + a_line, len(boxes))):
            name, layers, size = boxes[number]
            last = number == len(boxes) - 1
            arrow = "" if last else f"{show_time(plan.stages[number].hop_s):─^{joint - 1}}▶"
            gap = "" if last else " " * joint
            drawn = [f"╭{'─' * width}╮{gap}", f"│{name}│{gap}", f"│{layers}│{arrow}", f"│{size}│{gap}", f"╰{'─' * width}╯{gap}"]
            lines = [line + part for line, part in zip(lines, drawn, strict=True)]
        rows.append("\n".join(line.rstrip() for line in lines))
    back = ""
    if len(boxes) > 1:
        back = f"\n╰◀── token ids, {show_time(plan.stages[-1].hop_s)} ── back to {plan.stages[0].machine}"
    return "\n" + "\n".join(rows) + back + "\n"


def box(stage: PlannedStage, plan: Plan) -> list[str]:
    """The three lines in a stage's box."""
    ends = ["embed"] if stage.stage == 0 else []
    ends += [f"{stage.first_layer}-{stage.end_layer - 1}"]
    ends += ["head"] if stage.stage == len(plan.stages) - 1 else []
    slowest = " ▲" if plan.bottleneck.stage == stage.stage else ""
    return [f" {stage.stage} {stage.machine}{slowest} ", f" {' · '.join(ends)} ", f" {show_time(stage.step_s)} a step "]


def stage_table(plan: Plan) -> Table:
    """A row for each stage: where its bytes go, and its time."""
    table = Table(header_style="dim", box=None, padding=(0, 2, 0, 0))
    for column in ("stage", "machine", "layers", "weights", "KV cache", "memory", "limit", "step", "hop"):
        table.add_column(column, justify="left" if column == "machine" else "right", no_wrap=True)
    for stage in plan.stages:
        table.add_row(
            str(stage.stage),
            stage.machine,
            f"{stage.first_layer}-{stage.end_layer - 1}",
            show_bytes(stage.weight_bytes),
            show_bytes(stage.kv_bytes),
            show_bytes(stage.memory_bytes),
            show_bytes(stage.memory_limit),
            show_time(stage.step_s),
            show_time(stage.hop_s),
        )
    return table


def prediction_table(plan: Plan) -> Table:
    """What one stream and what many can expect."""
    table = Table(header_style="dim", box=None, padding=(0, 2, 0, 0))
    for column in ("streams", "first token after", "between tokens", "tokens/s"):
        table.add_column(column, justify="right")
    rows: list[Prediction] = [plan.one] if plan.load.streams == 1 else [plan.one, plan.many]
    for p in rows:
        table.add_row(str(p.streams), show_time(p.ttft_s), show_time(p.itl_s), show_rate(p.tokens_per_s))
    return table
