"""`ring keys`: makes, shows, adds and removes the keys of a ring's machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ring.sentences import sentences

app = typer.Typer(
    no_args_is_help=True,
    help="""Make and manage the keys that let a ring's machines, and no one else, talk to each other.

    [bold]ring keys new[/bold] writes one folder for each machine. Copy each to its machine, and give it there with
    --keys, or put it into RING_KEYS.""",
)

KeysArgument = Annotated[Path, typer.Argument(help="A machine's folder of keys.", show_default=False)]


@app.command()
def new(
    out: Annotated[Path, typer.Argument(help="The folder to write one folder a machine into.", show_default=False)],
    nodes: Annotated[list[str], typer.Option("--node", help="A machine that runs a stage; repeat for each.")],
    clients: Annotated[list[str] | None, typer.Option("--client", help="A machine that only asks; repeat for each.")] = None,
) -> None:
    """Make keys for a whole ring."""
    with sentences():
        from ring.keyring import make_keys

        make_keys(out, nodes, clients or [])
    for name in [*nodes, *(clients or [])]:
        typer.echo(f"{out / name}: copy this folder to {name}, keep it secret, and give it there with --keys")


@app.command()
def show(keys: KeysArgument) -> None:
    """Say whose keys these are, and who is let in."""
    with sentences():
        from ring.wire.keys import allowed_keys, load_keys

        mine = load_keys(keys)
    table = Table("name", "public key", header_style="dim")
    for name, public in allowed_keys(keys).items():
        table.add_row(name + (" (this machine)" if public == mine.my_public else ""), public.decode())
    console = Console(highlight=False)
    console.print(f"a {'node' if mine.ring_secret else 'client'}'s keys; the ring's public key is {mine.ring_public.decode()}")
    if mine.ring_secret:
        console.print(table)
    else:
        console.print(f"this machine's public key is {mine.my_public.decode()}")


@app.command()
def allow(
    keys: KeysArgument,
    name: Annotated[str, typer.Argument(help="What to call the newcomer.", show_default=False)],
    public: Annotated[str, typer.Argument(help="Its public key, or a .key file that holds it.", show_default=False)],
) -> None:
    """Let a key in, on this machine, from its next connection on."""
    with sentences():
        from ring.keyring import check_name, write_public
        from ring.wire.keys import ALLOWED, read_pair

        check_name(name)
        key = read_pair(Path(public))[0] if Path(public).is_file() else public.encode()
        write_public(keys / ALLOWED / f"{name}.key", key)
    typer.echo(f"{name} is let in by the node that uses {keys}; do this on every machine of the ring")


@app.command()
def revoke(
    keys: KeysArgument, name: Annotated[str, typer.Argument(help="As `ring keys show` lists it.", show_default=False)]
) -> None:
    """Let a key in no longer, on this machine. Connections that are open stay open until the node is started again."""
    with sentences():
        from ring.wire.keys import ALLOWED, KeyFileError

        path = keys / ALLOWED / f"{name}.key"
        if not path.is_file():
            raise KeyFileError(f"{keys} lets in no {name}; `ring keys show` lists whom it does")
        path.unlink()
    typer.echo(f"{name} is no longer let in by the node that uses {keys}; restart it to end open connections")
