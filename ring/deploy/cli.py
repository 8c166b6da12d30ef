"""`ring deploy`: writes the files; what they are is in the files beside this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ring import __version__
from ring.sentences import sentences
from weights_tools.ringfile import RingFile, RingFileError, read_ring_file

app = typer.Typer(
    no_args_is_help=True,
    help="""Write what runs a ring for good, from its ring.toml: systemd units, a compose file, or Kubernetes manifests.

    docs/deploy.md walks through each.""",
)

ConfigOption = Annotated[Path, typer.Option("--config", metavar="FILE", help="The ring's ring.toml.")]
OutOption = Annotated[Path, typer.Option(help="The folder to write into.")]
ImageOption = Annotated[str, typer.Option(help="What the image that you build from the Dockerfile is called.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace files that are there and differ.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the files' names as one JSON array.")]
IMAGE = f"ring:{__version__}"


@app.command()
def systemd(
    config: ConfigOption,
    out: OutOption,
    program: Annotated[str, typer.Option("--ring", metavar="PATH", help="Where `ring` is on the machines.")] = (
        "/opt/ring/bin/ring"
    ),
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """One hardened unit for each machine, in a folder of its name."""
    with sentences():
        from ring.deploy.systemd import systemd_files

        if not program.startswith("/"):
            raise RingFileError(f"--ring is '{program}'; systemd wants the whole path, from /")
        write(out, systemd_files(load(config), program), force, as_json)


@app.command()
def compose(
    config: ConfigOption,
    out: OutOption,
    image: ImageOption = IMAGE,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """A Dockerfile, and a compose file with one service for each machine."""
    with sentences():
        from ring.deploy.compose import compose_files

        write(out, compose_files(load(config), image), force, as_json)


@app.command()
def kubernetes(
    config: ConfigOption,
    out: OutOption,
    image: ImageOption = IMAGE,
    storage: Annotated[str, typer.Option(metavar="SIZE", help="Each pod's disk, which holds its shard.")] = "20Gi",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """A Dockerfile, and a StatefulSet in which pod K fetches and runs stage K, with its Services and ConfigMap."""
    with sentences():
        from ring.deploy.kubernetes import check_kubernetes, kubernetes_files

        ring = load(config)
        check_kubernetes(ring)
        write(out, kubernetes_files(ring, image, storage), force, as_json)


def load(config: Path) -> RingFile:
    """The ring file; a deployment without keys would not start, so it is refused here."""
    ring = read_ring_file(config)
    if ring.keys is None:
        raise RingFileError(f"{config} names no keys; make some with `ring keys new` and say where they are with keys = …")
    return ring


def write(out: Path, files: dict[str, str], force: bool, as_json: bool) -> None:
    """Write all files, or none if one is there already with other contents.

    Raises:
        RingFileError: one is there, or the folder cannot be written to.
    """
    paths = {out / name: text for name, text in files.items()}
    try:
        for path, text in paths.items():
            if path.exists() and not force and path.read_text() != text:
                raise RingFileError(f"{path} is there already and differs; replace it with --force, or choose another --out")
        for path, text in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    except OSError as error:
        raise RingFileError(f"{out} cannot be written ({error.strerror})") from None
    if as_json:
        print(json.dumps([str(path) for path in paths]))
    else:
        for path in paths:
            print(path)
