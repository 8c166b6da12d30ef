"""A plan for people: a table, a picture of the ring, and the commands that make it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ring.plan.machines import Machine
from ring.plan.plan import Plan, PlannedStage
from ring.plan.predict import Prediction
from ring.plan.units import show_bytes, show_rate, show_time

PORT, CLIENT_PORT = 5600, 5555


def commands(plan: Plan, machines: Sequence[Machine], checkpoint: str, file: Path | None) -> list[str]:
    """What to type: first where the checkpoint is, then one line on each machine."""
    by_name = {machine.name: machine for machine in machines}
    ring = [by_name[stage.machine] for stage in plan.stages]
    if file is not None:
        how = ["--plan", str(file)]
    else:
        layers = ",".join(f"{stage.first_layer}-{stage.end_layer - 1}" for stage in plan.stages)
        how = ["--layers", layers, "--dtype", plan.dtype]
    lines = [shlex.join(["ring", "split", checkpoint, "--out", "shards", *how])]
    if len(ring) > 1:
        nodes = [word for machine in ring for word in ("--node", machine.name)]
        lines.append(shlex.join(["ring", "keys", "new", "ring-keys", *nodes, "--client", "laptop"]))
    for stage, machine in zip(plan.stages, ring, strict=True):
        lines.append(shlex.join(node_command(stage, machine, ring)))
    return lines


def node_command(stage: PlannedStage, machine: Machine, ring: list[Machine]) -> list[str]:
    """What starts a stage's node on its machine, in a folder with its shard and its keys."""
    ports = node_ports(ring)
    alone = len(ring) == 1
    following = (stage.stage + 1) % len(ring)
    listen = f"tcp://{'127.0.0.1' if alone else '0.0.0.0'}:{ports[stage.stage]}"
    to = f"tcp://{'127.0.0.1' if alone else ring[following].reached_at}:{ports[following]}"
    command = ["ring", "node", f"stage-{stage.stage}", "--listen", listen, "--next", to, "--kv-memory", str(stage.kv_bytes)]
    if machine.threads:
        command += ["--threads", str(machine.threads)]
    if stage.stage == 0 and not alone:
        command += ["--clients", f"tcp://0.0.0.0:{CLIENT_PORT}"]
    return command if alone else [*command, "--keys", f"ring-keys/{machine.name}"]


def node_ports(ring: list[Machine]) -> list[int]:
    """A port for each node: the same on every computer, and the next ones for further nodes on one."""
    used: dict[str, int] = {}
    ports = []
    for machine in ring:
        ports.append(PORT + used.get(machine.reached_at, 0))
        used[machine.reached_at] = used.get(machine.reached_at, 0) + 1
    return ports


def show_plan(plan: Plan, assumed: str, width: int) -> RenderableType:
    """All of a plan, for a terminal of so many columns. `assumed` says what was not measured."""
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
        where = "" if len(plan.stages) == 1 else ", in a folder with its stage-K and its ring-keys/NAME"
        parts.append(Text.assemble(("\nto run it", "bold"), f", each line on its machine{where}:"))
        places = ["", *([""] if len(plan.stages) > 1 else []), *(stage.machine for stage in plan.stages)]
        longest = max(map(len, places))
        for place, line in zip(places, plan.commands, strict=True):
            parts.append(Text(f"{place + '$':>{longest + 1}} {line}"))
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
