"""`ring status` for people: a line for the ring and a row for each stage."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ring.wire.clients import Status


def status_table(status: Status) -> RenderableType:
    """What a Status says, as a line and a table."""
    lines = [
        Text.assemble(
            (f"{status.model} · {status.dtype} · {status.state}", "bold"),
            f"  {status.tokens_per_s:.1f} tokens/s, {status.running} running, {status.waiting} waiting, "
            f"KV {status.kv_used:,} of {status.kv_tokens:,} tokens, context {status.context:,}",
        )
    ]
    if status.draining:
        lines.append(Text("draining: no new requests are taken", "yellow"))
    if status.spares:
        lines.append(Text(f"spares wait for stage {', '.join(map(str, status.spares))}", "dim"))
    if status.detail:
        lines.append(Text(status.detail, "yellow"))
    table = Table(header_style="dim")
    for column in ("stage", "layers", "host", "state", "shard", "memory", "KV used", "KV free", "refused"):
        table.add_column(column, justify="left" if column in ("host", "state") else "right")
    for stage in status.stages:
        info = stage.info
        table.add_row(
            str(info.stage),
            f"{info.first_layer}-{info.end_layer - 1}",
            f"{info.host}:{info.pid}",
            "running" if status.state == "ready" else "?",
            f"{info.shard_bytes / 1e6:,.1f} MB",
            f"{stage.resident_bytes / 1e6:,.0f} MB",
            f"{stage.kv_used:,}",
            f"{info.kv_tokens - stage.kv_used:,}",
            str(stage.refused),
        )
    return Group(*lines, table) if status.stages else Group(*lines)
