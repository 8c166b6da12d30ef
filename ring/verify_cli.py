"""The command `ring verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ring.sentences import errors, sentences

DIFFERS = 3


def verify(
    shards: Annotated[
        list[Path], typer.Argument(metavar="DIR…", help="All shards in the ring's order, or the folder that holds them.")
    ],
    reference: Annotated[
        str, typer.Option(metavar="CHECKPOINT", help="What they were cut from: a folder, or a name on the Hugging Face Hub.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was compared as one JSON object.")] = False,
) -> None:
    """Compare shards with the whole model: every byte of every tensor, then, with transformers, what every layer computes.

    The first difference is named: the tensor and the place in it, or the layer. Exit code 0: equal; 3: a difference;
    1: they cannot be compared. Memory holds one shard, or one layer of the reference, at a time.
    """
    with sentences():
        from ring.verify import verify_ring
        from weights_tools.skeleton import hush_transformers

        hush_transformers()
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=errors, transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("opening", total=None)
            report = verify_ring(
                shards,
                reference,
                total=lambda what, size: bar.reset(task, description=what, total=size),
                progress=lambda size: bar.advance(task, size),
            )
    if as_json:
        print(msgspec.json.encode(report).decode())
    else:
        console = Console(highlight=False)
        if report.difference is None:
            worst = max(layer.difference for layer in report.layers)
            console.print(
                f"[green]equal[/green]: {report.stages} shards, {report.tensors} tensors ({report.bytes / 1e6:,.1f} MB) byte "
                f"for byte; {len(report.layers)} outputs within {worst:.2g} of transformers'",
                soft_wrap=True,
            )
        else:
            console.print(f"[red]different[/red]: {escape(report.difference.what)}", soft_wrap=True)
    if not report.equal:
        raise typer.Exit(DIFFERS)
