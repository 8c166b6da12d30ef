"""`ring profile`: runs the measurements behind a progress bar, and writes down what they say."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ring.plan.link import LinkError, answer, measure
from ring.plan.profile import DTYPES, Profile, profile, steps
from ring.plan.record import record
from ring.plan.units import show_time
from ring.sentences import errors
from ring.wire.keys import Keys, load_keys
from ring.wire.sockets import is_exposed


def run_listen(address: str, keys: Path | None, insecure: bool) -> None:
    """Answer a neighbour's measurements until Ctrl-C."""
    answer(address, link_keys(address, keys, insecure), lambda line: errors.print(line, soft_wrap=True))


def run_profile(
    name: str | None,
    out: Path,
    threads: int | None,
    nodes: int,
    dtypes: list[str] | None,
    to: str | None,
    keys: Path | None,
    insecure: bool,
    as_json: bool,
) -> None:
    """Measure, write `out`, and show it.

    Raises:
        LinkError, MachineError, AddressError: each a sentence; the file is as it was.
    """
    link = None if to is None else measure(to, link_keys(to, keys, insecure))
    from weights_tools.skeleton import hush_transformers  # torch: not needed to answer a neighbour

    hush_transformers()
    cores = psutil.cpu_count(logical=False) or 1
    chosen = tuple(dtypes or DTYPES)
    columns = (TextColumn("measuring"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", total=steps(nodes, len(chosen)))
        found = profile(
            name or socket.gethostname(),
            threads or max(1, cores // nodes),
            nodes,
            chosen,
            lambda what: bar.update(task, advance=1, description=what),
        )
    if link is not None:
        found = msgspec.structs.replace(found, latency=link[0], network=link[1])
    record(out, found)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        Console(highlight=False).print(table(found))
        errors.print(f"written to {out}; plan with `ring plan CHECKPOINT --machines {out}`", soft_wrap=True)


def link_keys(address: str, keys: Path | None, insecure: bool) -> Keys | None:
    """The keys to measure a link with.

    Raises:
        LinkError: none, for an address that other machines reach.
    """
    if keys is None and is_exposed(address) and not insecure:
        raise LinkError(f"{address} is open to other machines; give --keys, or --insecure on a network that you trust")
    return load_keys(keys) if keys is not None else None


def table(found: Profile) -> Table:
    """Rates by dtype and rows, under a line with the rest."""
    title = (
        f"{found.name} · {found.threads} threads · {found.memory / (1 << 30):.1f} GiB free"
        f" · reads {found.bandwidth / 1e9:.1f} GB/s"
        f" · a layer {show_time(found.layer_overhead)} + {show_time(found.run_overhead)} a sequence"
    )
    if found.nodes > 1:
        title += f" · {found.at_once:.2f} of {found.nodes} nodes at once"
    if found.latency is not None and found.network is not None:
        title += f" · link {show_time(found.latency)}, {found.network / 1e9:.3g} Gbit/s"
    rows = sorted({size for rates in found.linear.values() for size in rates})
    shown = Table(title=title, title_justify="left", header_style="dim", caption="GB of weights a second, by rows")
    for column in ("dtype", *map(str, rows)):
        shown.add_column(column, justify="left" if column == "dtype" else "right")
    for dtype, rates in found.linear.items():
        shown.add_row(dtype, *(f"{rates[size] / 1e9:.3g}" for size in rows))
    return shown
