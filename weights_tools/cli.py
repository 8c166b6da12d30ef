"""`ring split` and `ring inspect`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from weights_tools.ringfile import read_ring_file
from weights_tools.shard import Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

errors = Console(stderr=True, highlight=False)


class Dtype(StrEnum):
    """What weights can be stored as."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    int8 = "int8"


StoreAs = Annotated[
    Dtype | None,
    typer.Option(
        help="Store weights as this; with int8 those of linear layers, and the rest as bfloat16.", show_default="as they are"
    ),
]


def add_commands(app: typer.Typer, prove: Callable[[PreTrainedConfig], None]) -> None:
    """Offer the commands on `app`. `prove` is handed in because it runs the ring's own stages, unknown here."""

    @app.command()
    def split(
        checkpoint: Annotated[
            str | None,
            typer.Argument(help="A checkpoint's folder, or its name on the Hugging Face Hub.", show_default=False),
        ] = None,
        out: Annotated[Path | None, typer.Option(help="The folder for stage-0, stage-1, …", show_default=False)] = None,
        stages: Annotated[int | None, typer.Option(min=1, help="Cut into so many stages of about the same cost.")] = None,
        layers: Annotated[str | None, typer.Option(help="Or cut just here, such as 0-3,4-11.")] = None,
        plan: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Or as `ring plan --out FILE` has planned it.", show_default=False)
        ] = None,
        config: Annotated[
            Path | None, typer.Option(metavar="FILE", help="Or take all this from a ring.toml.", show_default=False)
        ] = None,
        dtype: StoreAs = None,
        revision: Annotated[str, typer.Option(help="From the Hub: a branch, tag or commit.")] = "main",
        force: Annotated[bool, typer.Option("--force", help="Replace the shards that are there.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print the manifests as one JSON array.")] = False,
    ) -> None:
        """Cut a checkpoint into one shard for each machine.

        First a tiny random model of the same config is cut and run, to prove that a ring computes what the whole does.
        """
        if config is None and (checkpoint is None or out is None or not (stages or layers or plan)):
            raise typer.BadParameter("give a checkpoint, --out, and --stages, --layers or --plan; or --config")
        if config is not None and (checkpoint or out or stages or layers or plan or dtype):
            raise typer.BadParameter("with --config, give nothing that the file says")
        if plan is not None and (stages or layers):
            raise typer.BadParameter("a plan says where to cut; give --plan, or --stages or --layers")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            if config is not None:
                ring = read_ring_file(config)
                checkpoint, out, stages, layers = ring.model, ring.shards, ring.stages, ring.layers
                dtype, revision = ring.dtype and Dtype(ring.dtype), ring.revision
            assert checkpoint is not None and out is not None
            from weights_tools.skeleton import hush_transformers
            from weights_tools.split import split as split_checkpoint

            hush_transformers()
            with counting("splitting") as count:
                manifests = split_checkpoint(
                    checkpoint,
                    out,
                    stages=stages,
                    layers=layers,
                    plan=plan,
                    dtype=dtype,
                    revision=revision,
                    force=force,
                    prove=prove,
                    total=count.total,
                    progress=count.advance,
                )
        except ValueError as error:
            fail(error)
        except KeyboardInterrupt:
            errors.print("interrupted; nothing was written")
            raise typer.Exit(130) from None
        else:
            if as_json:
                print(msgspec.json.encode(manifests).decode())
            else:
                Console(highlight=False).print(split_table(manifests, out))

    @app.command()
    def inspect(
        shard: Annotated[Path, typer.Argument(help="A stage's folder.")],
        as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
    ) -> None:
        """Print what a shard holds, and check every byte of it against its checksums."""
        from weights_tools.shard import read_manifest
        from weights_tools.verify import verify

        try:
            with counting("checking") as count:
                count.total(read_manifest(shard).bytes)
                manifest = verify(shard, count.advance)
        except ValueError as error:
            fail(error)
        if as_json:
            print(msgspec.json.encode(manifest).decode())
        else:
            console = Console(highlight=False)
            console.print(manifest_table(manifest))
            console.print(f"all {len(manifest.tensors)} tensors have their checksums", style="green")


def fail(error: Exception) -> None:
    """One sentence and exit code 1; a bug keeps its traceback."""
    if type(error).__module__ == "builtins":
        raise error
    errors.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
    raise typer.Exit(1) from None


class Count(NamedTuple):
    """What a progress bar is told: how many bytes there are in all, how many more are done, that it is to go at once."""

    total: Callable[[int], None]
    advance: Callable[[int], None]
    stop: Callable[[], None]


@contextmanager
def counting(what: str) -> Iterator[Count]:
    """A bar with bytes, rate and time left, on a terminal's standard error."""
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        yield Count(lambda size: bar.update(task, total=size), lambda size: bar.advance(task, size), bar.stop)


def split_table(manifests: list[Manifest], out: Path) -> Table:
    """What went where."""
    total = sum(manifest.bytes for manifest in manifests)
    first = manifests[0]
    table = Table(title=f"{first.name} · {first.dtype} · {total / 1e6:,.1f} MB in {out}", title_justify="left")
    for column in ("stage", "layers", "tensors", "bytes", "share"):
        table.add_column(column, justify="right")
    for m in manifests:
        layers = f"{m.first_layer}-{m.end_layer - 1}"
        table.add_row(str(m.stage), layers, str(len(m.tensors)), f"{m.bytes:,}", f"{m.bytes / total:.1%}")
    return table


def manifest_line(m: Manifest) -> str:
    """Whose shard it is, in one line."""
    return (
        f"{m.name} ({m.model_type}) · stage {m.stage} of {m.stages} · layers {m.first_layer}-{m.end_layer - 1} of {m.layers} · "
        f"{m.dtype} · {m.bytes / 1e6:,.1f} MB · fingerprint {m.fingerprint}"
    )


def manifest_table(m: Manifest) -> Table:
    """A shard's tensors, under a title that says whose they are."""
    table = Table(title=manifest_line(m), title_justify="left")
    for column in ("tensor", "shape", "dtype", "bytes", "sha256"):
        table.add_column(column, justify="right" if column == "bytes" else "left", overflow="fold")
    for name, entry in m.tensors.items():
        table.add_row(name, "x".join(map(str, entry.shape)), entry.dtype, f"{entry.bytes:,}", entry.sha256[:12])
    for target, source in m.tied.items():
        table.add_row(target, f"= {source}", "", "", "")
    return table
