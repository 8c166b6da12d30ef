"""`ring keys`: makes, shows, adds and removes the keys of a ring's machines; what they mean is in `ring.wire.keys`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
import zmq.auth
from rich.console import Console
from rich.table import Table

from ring.sentences import sentences
from ring.wire.keys import ALLOWED, ME, NAME, RING, KeyFileError, allowed_keys, load_keys, read_pair

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
        make_keys(out, nodes, clients or [])
    for name in [*nodes, *(clients or [])]:
        typer.echo(f"{out / name}: copy this folder to {name}, keep it secret, and give it there with --keys")


@app.command()
def show(keys: KeysArgument) -> None:
    """Say whose keys these are, and who is let in."""
    with sentences():
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
        check_name(name)
        key = read_pair(Path(public))[0] if Path(public).is_file() else public.encode()
        write_public(keys / ALLOWED / f"{name}.key", key)
    typer.echo(f"{name} is let in by the node that uses {keys}; do this on every machine of the ring")


@app.command()
def revoke(
    keys: KeysArgument, name: Annotated[str, typer.Argument(help="As `ring keys show` lists it.", show_default=False)]
) -> None:
    """Let a key in no longer, on this machine. Connections that are open stay open until the node is started again."""
    path = keys / ALLOWED / f"{name}.key"
    with sentences():
        if not path.is_file():
            raise KeyFileError(f"{keys} lets in no {name}; `ring keys show` lists whom it does")
        path.unlink()
    typer.echo(f"{name} is no longer let in by the node that uses {keys}; restart it to end open connections")


def make_keys(out: Path, nodes: list[str], clients: list[str]) -> None:
    """Write one folder for each machine into `out`.

    Raises:
        KeyFileError: a name twice or not fit for a file, or a folder that is there already.
    """
    names = [*nodes, *clients]
    for name in names:
        check_name(name)
        if (out / name).exists():
            raise KeyFileError(f"{out / name} exists already; choose another folder, or remove it first")
    if len(set(names)) != len(names):
        raise KeyFileError("every machine needs a name of its own")
    for name in names:
        (out / name).mkdir(parents=True, mode=0o700)
        zmq.auth.create_certificates(out / name, ME)
    zmq.auth.create_certificates(out / nodes[0], RING)
    for name in names[1:]:
        shutil.copy2(out / nodes[0] / f"{RING}.key", out / name)
        if name in nodes:
            shutil.copy2(out / nodes[0] / f"{RING}.key_secret", out / name)
    for name in nodes:
        (out / name / ALLOWED).mkdir(mode=0o700)
        for other in names:
            shutil.copy2(out / other / f"{ME}.key", out / name / ALLOWED / f"{other}.key")
    for secret in (path for name in names for path in (out / name).glob("*.key_secret")):
        secret.chmod(0o600)


def check_name(name: str) -> None:
    """Raises KeyFileError unless a name is fit for a file."""
    if NAME.fullmatch(name) is None:
        raise KeyFileError(f"'{name}' is no name for a machine; use letters, digits, dots and dashes")


def write_public(path: Path, key: bytes) -> None:
    """Write a public key file.

    Raises:
        KeyFileError: not a key in the Z85 form.
    """
    try:
        valid = len(zmq.utils.z85.decode(key)) == 32
    except (ValueError, KeyError):
        valid = False
    if not valid:
        raise KeyFileError("a public key is 40 characters, as in the second line from the end of a .key file")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'metadata\ncurve\n    public-key = "{key.decode()}"\n')
