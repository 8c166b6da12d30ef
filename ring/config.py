"""What one machine's node is told by ring.toml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from ring.start import NodeOptions
from ring.wire.sockets import is_exposed
from weights_tools.ringfile import RingFile, parse_size


def configure(given: NodeOptions, ring: RingFile, name: str) -> NodeOptions:
    """The options of the node that runs on machine `name`. Of those that both give, the command line's stand.

    Raises:
        RingFileError: no such machine.
    """
    machine = ring.machine(name)
    return replace(
        given,
        shard=ring.shard(machine) if given.shard == Path() else given.shard,
        listen=machine.listen or listen_at(machine.address),
        next=ring.at(machine.stage + 1).address,
        advertise=machine.address,
        clients=ring.clients,
        threads=given.threads or machine.threads,
        kv_memory=given.kv_memory or (parse_size(machine.kv_memory) if machine.kv_memory else None),
        device=machine.device,
        spare=machine.spare,
        keys=given.keys or ring.keys_of(machine),
        insecure=given.insecure or ring.insecure,
    )


def listen_at(address: str) -> str:
    """All interfaces, at an address's port; for one of loopback, that alone."""
    return f"tcp://0.0.0.0:{urlsplit(address).port}" if is_exposed(address) else address
