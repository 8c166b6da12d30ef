"""`ring doctor`: checks what can be wrong with a machine or a ring, one finding a line, each with what to do."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec
import psutil
import zmq
import zmq.asyncio
from rich.console import Console

from ring import __version__
from ring.answers import NoHead, RingError
from ring.client import RingClient
from ring.wire.clients import StageStatus, Status
from ring.wire.keys import Keys, allowed_keys, load_keys
from ring.wire.sockets import configure, is_exposed
from weights_tools.shard import Manifest, read_manifest

REACH_S = 2.0
CLOCK_S = 2.0
LITTLE = 512 << 20


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at. `fix` says what to do, and is empty if it is well."""

    subject: str
    state: Literal["ok", "warning", "error"]
    finding: str
    fix: str = ""


async def examine(
    shard: Path | None, listen: str | None, following: str | None, head: str, keys: Path | None, insecure: bool
) -> list[Finding]:
    """Look at all that was named: keys, shard, the ports both ways, and the ring behind the head."""
    findings: list[Finding] = []
    try:
        loaded = load_keys(keys) if keys else None
        findings.append(about_keys(loaded, [head, *filter(None, [listen, following])], insecure))
    except ValueError as error:
        loaded = None
        findings.append(Finding("keys", "error", str(error), "make keys, or copy this machine's folder again"))
    if shard is not None:
        findings += about_shard(shard)
    if listen is not None:
        findings.append(about_listen(listen))
    if following is not None:
        findings.append(await about_next(following, loaded))
    return findings + await about_ring(head, keys, insecure)


def about_keys(keys: Keys | None, addresses: list[str], insecure: bool) -> Finding:
    """Whether there are keys where there must be."""
    if keys is not None:
        kind = f"a node's, letting in {', '.join(allowed_keys(keys.folder))}" if keys.ring_secret else "a client's"
        return Finding("keys", "ok", f"{keys.folder} is {kind}")
    exposed = [address for address in addresses if is_exposed(address)]
    if not exposed:
        return Finding("keys", "ok", "none, and none needed: everything is on this machine")
    if insecure:
        return Finding("keys", "warning", f"none, and {exposed[0]} is open to its network", "make some with `ring keys new`")
    return Finding("keys", "error", f"none, but {exposed[0]} is another machine's", "give --keys, or --insecure")


def about_shard(folder: Path) -> list[Finding]:
    """Whether the shard is one, and fits into memory."""
    try:
        manifest: Manifest = read_manifest(folder)
    except ValueError as error:
        return [Finding("shard", "error", str(error), "split the checkpoint, or copy the folder again")]
    what = f"stage {manifest.stage} of {manifest.stages}, {manifest.name}, {manifest.bytes / 1e6:,.0f} MB"
    free, needed = psutil.virtual_memory().available, int(manifest.bytes * 1.15) + LITTLE
    memory = f"{free / 1e6:,.0f} MB free, about {needed / 1e6:,.0f} MB needed before the KV cache"
    fits = free > needed
    return [
        Finding("shard", "ok", f"{what}; `ring inspect {folder}` checks every byte"),
        Finding("memory", "ok" if fits else "error", memory, "" if fits else "free some, or split into more stages"),
    ]


def about_listen(address: str) -> Finding:
    """Whether a node listens here, or could."""
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if host in ("*", "0.0.0.0") else host, port))
        except OSError as error:
            if error.errno == 98:  # EADDRINUSE
                return Finding("listen", "ok", f"something listens at {address}; the node, if it runs")
            return Finding("listen", "error", f"{address}: {error.strerror}", "use an address of this machine, or 0.0.0.0")
    return Finding("listen", "warning", f"nothing listens at {address} yet", "start `ring node` here")


async def about_next(address: str, keys: Keys | None) -> Finding:
    """Whether the next node answers, and takes these keys: a handshake, without a message."""
    context = zmq.asyncio.Context()
    push = context.socket(zmq.PUSH)
    configure(push)
    if keys is not None:
        keys.connect(push)
    monitor = push.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    connected = False
    try:
        push.connect(address)
        deadline = time.monotonic() + REACH_S  # a peer that refuses is tried again and again
        while (left := deadline - time.monotonic()) > 0 and await monitor.poll(int(left * 1000) + 1):
            event = int.from_bytes((await monitor.recv_multipart())[0][:2], "little")
            connected = True
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return Finding("next", "ok", f"{address} answers" + (" and takes this machine's key" if keys else ""))
    except zmq.ZMQError as error:
        return Finding("next", "error", f"{address}: {error.strerror or error}", "write it as tcp://HOST:PORT")
    finally:
        context.destroy(linger=0)
    if connected:
        fix = "give both machines keys of the same ring, and let this one's in with `ring keys allow`"
        return Finding("next", "error", f"{address} can be reached, but does not let this machine in", fix)
    fix = "start the node there; if it runs, check the address and the firewall between"
    return Finding("next", "error", f"nothing answers at {address}", fix)


async def about_ring(head: str, keys: Path | None, insecure: bool) -> list[Finding]:
    """What the head says of itself and of every stage."""
    try:
        async with RingClient(head, keys=keys, insecure=insecure, timeout=REACH_S) as client:
            status = await client.status()
    except NoHead as error:
        return [Finding("head", "error", str(error), "start stage 0's node, or check --head, --keys and the firewall")]
    except (RingError, ValueError) as error:
        return [Finding("head", "error", str(error), "correct that first")]
    states: dict[str, Finding] = {
        "ready": Finding("ring", "ok", f"{status.model}, {len(status.stages)} stages, {status.dtype}, the same model on all"),
        "forming": Finding("ring", "error", f"not formed: {status.detail}", "start that node; run this on its machine"),
        "mismatch": Finding("ring", "error", status.detail, "correct that node; the head tries again by itself"),
    }
    return [states[status.state], *(finding for stage in status.stages for finding in about_stage(stage, status))]


def about_stage(stage: StageStatus, status: Status) -> list[Finding]:
    """One stage's version, memory, clock and what it refused."""
    info = stage.info
    subject, where = f"stage {info.stage}", f"on {info.host}"
    found = []
    if info.version != __version__:
        found.append(
            Finding(subject, "warning", f"ring {info.version} {where}, {__version__} here", "install the same everywhere")
        )
    if abs(stage.clock_s) > CLOCK_S:
        drift = f"the clock {where} is {abs(stage.clock_s):.1f} s {'ahead of' if stage.clock_s > 0 else 'behind'} the head's"
        found.append(Finding(subject, "warning", drift, "harmless to the ring, but its logs lie; turn on NTP"))
    if status.state == "ready" and 0 < stage.available_bytes < LITTLE:
        low = f"only {stage.available_bytes / 1e6:,.0f} MB of memory are free {where}"
        found.append(Finding(subject, "warning", low, "give it less --kv-memory, or fewer layers"))
    if stage.refused:
        found.append(Finding(subject, "warning", f"{stage.refused} messages were refused {where}", "see its log for why"))
    return found or [Finding(subject, "ok", f"layers {info.first_layer}-{info.end_layer - 1} {where}, nothing amiss")]


def print_findings(findings: list[Finding], as_json: bool) -> bool:
    """Print them; returns whether none is an error."""
    if as_json:
        print(msgspec.json.encode(findings).decode())
    else:
        console = Console(highlight=False)
        marks = {"ok": "[green]ok[/green]     ", "warning": "[yellow]warning[/yellow]", "error": "[red]error[/red]  "}
        for finding in findings:
            fix = f"\n{'':17}[bold]→ {finding.fix}[/bold]" if finding.fix else ""
            console.print(f"{marks[finding.state]}  {finding.subject:8}{finding.finding}{fix}", soft_wrap=True)
    return all(finding.state != "error" for finding in findings)
