"""What makes a ring of a plan: its ring.toml, and the commands to type."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ring.plan.machines import Machine
from ring.plan.plan import Command, Plan, PlannedStage
from weights_tools import ringfile
from weights_tools.ringfile import RingFile

PORT, CLIENT_PORT = 5600, 5555
KEYS = Path("keys")
HEADER = "# Made by `ring plan`, the same on every machine, and yours to edit; see docs/deploy.md.\n"


def ring_file(plan: Plan, machines: Sequence[Machine], model: str) -> RingFile:
    """The ring.toml of a plan. `model` is as for `ring split`; folders are beside the file.

    Raises:
        RingFileError: names or addresses that a ring cannot have.
    """
    ring = in_ring(plan, machines)
    addresses = node_addresses(ring)
    alone = len(ring) == 1
    found = RingFile(
        model=str(Path(model).expanduser().resolve()) if Path(model).expanduser().exists() else model,
        dtype=plan.dtype,  # type: ignore[arg-type]  # one of these
        clients=f"tcp://{'127.0.0.1' if alone else '0.0.0.0'}:{CLIENT_PORT}",
        keys=None if alone else KEYS,
        machines=[
            ringfile.Machine(
                name=machine.name,
                stage=stage.stage,
                address=address,
                layers=layers_text(stage),
                threads=machine.threads,
                kv_memory=f"{-(-stage.kv_bytes // (1 << 20))}M",
            )
            for stage, machine, address in zip(plan.stages, ring, addresses, strict=True)
        ],
    )
    ringfile.check(found)
    return found


def chain(ring: RingFile, path: Path) -> list[Command]:
    """How to come from a ring.toml to a ring: what is typed here, and then one line on each machine, beside the file."""
    lines = []
    if Path(ring.model).is_absolute():
        lines.append(["ring", "split", "--config", str(path)])
    if ring.keys is not None:
        lines.append(keys_command(path.parent / ring.keys, [machine.name for machine in ring.machines]))
    commands = [Command("", shlex.join(line)) for line in lines]
    for machine in ring.machines:
        options = ["--config", path.name, "--name", machine.name]
        node = shlex.join(["ring", "node", *options])
        fetch = "" if Path(ring.model).is_absolute() else shlex.join(["ring", "fetch", *options]) + " && "
        commands.append(Command(machine.name, fetch + node))
    return commands


def without_file(plan: Plan, machines: Sequence[Machine], checkpoint: str, file: Path | None) -> list[Command]:
    """The same without a ring.toml: first where the checkpoint is, then one line on each machine."""
    ring = in_ring(plan, machines)
    how = ["--layers", ",".join(map(layers_text, plan.stages)), "--dtype", plan.dtype]
    if file is not None:
        how = ["--plan", str(file)]
    lines = [["ring", "split", checkpoint, "--out", "shards", *how]]
    if len(ring) > 1:
        lines.append(keys_command(KEYS, [machine.name for machine in ring]))
    nodes = [Command(m.name, shlex.join(node_command(stage, ring))) for stage, m in zip(plan.stages, ring, strict=True)]
    return [*(Command("", shlex.join(line)) for line in lines), *nodes]


def in_ring(plan: Plan, machines: Sequence[Machine]) -> list[Machine]:
    """The machine of each stage."""
    by_name = {machine.name: machine for machine in machines}
    return [by_name[stage.machine] for stage in plan.stages]


def layers_text(stage: PlannedStage) -> str:
    """As `--layers` takes them."""
    return f"{stage.first_layer}-{stage.end_layer - 1}"


def keys_command(folder: Path, nodes: list[str]) -> list[str]:
    """What makes the keys of these machines, and of one to ask from."""
    return ["ring", "keys", "new", str(folder), *(word for node in nodes for word in ("--node", node)), "--client", "laptop"]


def node_command(stage: PlannedStage, ring: list[Machine]) -> list[str]:
    """What starts a stage's node on its machine, in a folder with its shard and its keys."""
    machine, addresses, alone = ring[stage.stage], node_addresses(ring), len(ring) == 1
    port = addresses[stage.stage].rpartition(":")[2]
    listen, to = f"tcp://{'127.0.0.1' if alone else '0.0.0.0'}:{port}", addresses[(stage.stage + 1) % len(ring)]
    command = ["ring", "node", f"stage-{stage.stage}", "--listen", listen, "--next", to, "--kv-memory", str(stage.kv_bytes)]
    if machine.threads:
        command += ["--threads", str(machine.threads)]
    if stage.stage == 0 and not alone:
        command += ["--clients", f"tcp://0.0.0.0:{CLIENT_PORT}"]
    return command if alone else [*command, "--keys", str(KEYS / machine.name)]


def node_addresses(ring: list[Machine]) -> list[str]:
    """Where each node is reached: at the same port on every computer, and at the next ones for further nodes on one."""
    used: dict[str, int] = {}
    addresses = []
    for machine in ring:
        host = "127.0.0.1" if len(ring) == 1 else machine.reached_at
        addresses.append(f"tcp://{host}:{PORT + used.get(host, 0)}")
        used[host] = used.get(host, 0) + 1
    return addresses
