"""`ring fetch`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console

from weights_tools.cli import Dtype, StoreAs, counting, errors, fail, manifest_line
from weights_tools.ringfile import read_ring_file

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def add_fetch(app: typer.Typer, prove: Callable[[PreTrainedConfig], None]) -> None:
    """Offer the command on `app`; `prove` as for `add_commands`."""

    @app.command()
    def fetch(
        repo: Annotated[
            str | None,
            typer.Argument(help="A model's name on the Hugging Face Hub, such as Qwen/Qwen2-7B.", show_default=False),
        ] = None,
        stage: Annotated[
            int | None, typer.Option(min=0, help="Which stage this machine runs, from 0.", show_default=False)
        ] = None,
        out: Annotated[Path | None, typer.Option(help="The folder to write stage-K into.", show_default=False)] = None,
        stages: Annotated[int | None, typer.Option(min=1, help="Cut into so many stages, as `ring split` would.")] = None,
        layers: Annotated[
            str | None, typer.Option(help="Or cut just here, such as 0-3,4-11; the same on all machines.")
        ] = None,
        plan: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Or as `ring plan --out FILE` has planned it.", show_default=False)
        ] = None,
        dtype: StoreAs = None,
        revision: Annotated[str, typer.Option(help="A branch, tag or commit.")] = "main",
        config: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="Take all this from a ring.toml, with --name.", show_default=False),
        ] = None,
        name: Annotated[str | None, typer.Option(help="Which of the ring.toml's machines this is.", show_default=False)] = None,
        endpoint: Annotated[
            str | None, typer.Option(metavar="URL", help="Another server than the Hub.", show_default="HF_ENDPOINT")
        ] = None,
        force: Annotated[bool, typer.Option("--force", help="Replace another stage-K that is there.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print what was fetched as one JSON object.")] = False,
    ) -> None:
        """Download one stage only: the same shard that `ring split` makes, from just its bytes of the checkpoint.

        The disk needs room for the shard and no more. Killed or cut off, the same command goes on where it stopped.
        """
        if config is None and (repo is None or stage is None or out is None or not (stages or layers or plan)):
            raise typer.BadParameter("give a model, --stage, --stages (or --layers, --plan) and --out; or --config and --name")
        if config is not None and (name is None or repo or stage is not None or stages or layers or plan or out or dtype):
            raise typer.BadParameter("with --config, give --name, and nothing that the file says")
        if plan is not None and (stages or layers):
            raise typer.BadParameter("a plan says where to cut; give --plan, or --stages or --layers")
        try:
            if config is not None:
                ring = read_ring_file(config)
                machine = ring.machine(name or "")
                repo, stage, out, stages, layers = ring.model, machine.stage, ring.shards, ring.stages, ring.layers
                dtype, revision = ring.dtype and Dtype(ring.dtype), ring.revision
            assert repo is not None and stage is not None and out is not None
            from weights_tools.fetch import fetch as fetch_stage
            from weights_tools.skeleton import hush_transformers

            hush_transformers()
            with counting("fetching") as count:
                quit_at_once(count.stop)
                fetched = fetch_stage(
                    repo,
                    out,
                    stage=stage,
                    stages=stages,
                    layers=layers,
                    plan=plan,
                    dtype=dtype,
                    revision=revision,
                    endpoint=endpoint,
                    force=force,
                    prove=prove,
                    total=count.total,
                    progress=count.advance,
                )
        except ValueError as error:
            fail(error)
        if as_json:
            print(msgspec.json.encode(fetched, enc_hook=str).decode())
        else:
            console = Console(highlight=False)
            console.print(manifest_line(fetched.manifest), soft_wrap=True)
            kept = f", {fetched.kept / 1e6:,.1f} MB were there already" if fetched.kept else ""
            console.print(f"{fetched.folder}: {fetched.received / 1e6:,.1f} MB came{kept}", soft_wrap=True)


def quit_at_once(tidy: Callable[[], None]) -> None:
    """End on Ctrl-C and SIGTERM without waiting for connections: whatever has been written counts for the next run."""

    def quit_now(number: int, _frame: FrameType | None) -> None:
        tidy()
        errors.print("interrupted; the same command goes on from here")
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, quit_now)
