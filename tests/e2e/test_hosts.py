"""A ring as it is deployed: three hosts with keys, one ring.toml, `ring node --config`, and a network with delay and loss."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ring.client import RingClient
from ring.keyring import make_keys
from tests.e2e.hosts import Hosts, NotPermitted
from tests.e2e.spawn import Node
from tests.models import generate, ragged_prompts

NAMES = ["alpha", "beta", "gamma"]
SPARE = "delta"  # for beta
LAPTOP = 5
NEW_TOKENS = 40
PROMPTS = ragged_prompts(4, longest=60)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    network = Hosts(5, delay_s=0.005, loses=100)
    try:
        with network:
            yield network
    except NotPermitted as reason:
        pytest.skip(str(reason))


class Deployed:
    """A ring on hosts; each node is started with the same file."""

    def __init__(self, hosts: Hosts, folder: Path, shards: Path) -> None:
        self.hosts, self.folder = hosts, folder
        make_keys(folder / "keys", [*NAMES, SPARE], ["laptop"])
        lines = ['model = "someone/checkpoint"', f'shards = "{shards}"', 'keys = "keys"', 'clients = "tcp://0.0.0.0:5555"']
        for host, name in enumerate([*NAMES, SPARE], 1):
            stage = 1 if name == SPARE else host - 1
            lines += ["[[machines]]", f'name = "{name}"', f"stage = {stage}", f'address = "tcp://{hosts.ip(host)}:5600"']
            lines += ["threads = 1", 'kv_memory = "64M"', f"spare = {str(name == SPARE).lower()}"]
        (folder / "ring.toml").write_text("\n".join(lines))
        self.nodes = [self.start(name) for name in NAMES]
        self.head = f"tcp://{hosts.ip(1)}:5555"

    def start(self, name: str) -> Node:
        command = ["node", "--config", str(self.folder / "ring.toml"), "--name", name]
        host = [*NAMES, SPARE].index(name) + 1
        return Node(command, self.folder / f"{name}.log", self.hosts.namespace(host))

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    async def answers(self, kill: str | None = None, again: bool = True) -> list[list[int]]:
        """What the ring answers to all prompts at once; a node is killed, and started again, in the middle of the first."""

        async def ask(ring: RingClient, at: int) -> list[int]:
            ids: list[int] = []
            blow = kill if at == 0 else None
            async for event in ring.generate(token_ids=PROMPTS[at], max_tokens=NEW_TOKENS):
                ids += event.token_ids
                if blow is not None and len(ids) >= 5:
                    stage = NAMES.index(blow)
                    await asyncio.to_thread(self.nodes[stage].kill)
                    if again:
                        self.nodes[stage] = self.start(blow)
                    blow = None
            return ids

        async with RingClient(self.head, keys=self.folder / "keys" / "laptop", timeout=60) as ring:
            return await asyncio.gather(*(ask(ring, at) for at in range(len(PROMPTS))))


@pytest.fixture
def ring(hosts: Hosts, llama: Path, tmp_path: Path) -> Iterator[Deployed]:
    deployed = Deployed(hosts, tmp_path, llama / "shards-3")
    try:
        yield deployed
    finally:
        for node in deployed.nodes:
            node.kill()


def test_three_hosts(hosts: Hosts, llama: Path, ring: Deployed) -> None:
    expected = generate(llama / "checkpoint", PROMPTS, NEW_TOKENS)
    assert hosts.run(LAPTOP, lambda: asyncio.run(ring.answers())) == expected, ring.logs()
    assert hosts.run(LAPTOP, lambda: asyncio.run(ring.answers(kill="beta"))) == expected, ring.logs()
    assert hosts.lost > 10
    for node in ring.nodes:
        node.send_signal(signal.SIGTERM)
    assert [node.wait() for node in ring.nodes] == [0, 0, 0]


def test_a_spare_on_a_host_of_its_own(hosts: Hosts, llama: Path, ring: Deployed) -> None:
    """It listens at all its interfaces, so the others must be told under which address it is reached."""
    expected = generate(llama / "checkpoint", PROMPTS, NEW_TOKENS)
    ring.nodes.append(ring.start(SPARE))
    assert hosts.run(LAPTOP, lambda: asyncio.run(ring.answers())) == expected, ring.logs()
    assert hosts.run(LAPTOP, lambda: asyncio.run(ring.answers(kill="beta", again=False))) == expected, ring.logs()
    assert ring.nodes[1].poll() is not None and ring.nodes[-1].poll() is None
