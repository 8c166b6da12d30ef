"""Starts real node processes on free loopback ports, and always ends them."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from ring.answers import RingError
from ring.client import RingClient
from ring.launch import free_ports
from ring.wire.clients import Status
from tests.e2e.spawn import ColdNode, Node

START_TIMEOUT_S = 120.0


class NodeRing:
    """The nodes of a ring, as a user would start them by hand. `clients` is the head's address, `next` another way to the
    next node than the straight one, `common` what every node is given, `keys` what a client needs."""

    spawn: type[Node | ColdNode] = Node

    def __init__(
        self, shards: Path, stages: int, *options: str, common: tuple[str, ...] = (), keys: Path | None = None
    ) -> None:
        self.shards = shards
        self.stages = stages
        self.options = options
        self.common = common
        self.keys = keys
        self.next: dict[int, str] = {}
        *self.ports, client_port = free_ports(stages + 1)
        self.clients = f"tcp://127.0.0.1:{client_port}"
        self.nodes: dict[int, Node | ColdNode] = {}
        self.logs = Path(tempfile.mkdtemp(prefix="logs-", dir=shards.parent))  # ports come again, folders must not

    def address(self, stage: int) -> str:
        """Where a stage listens."""
        return f"tcp://127.0.0.1:{self.ports[stage % self.stages]}"

    def start(self, stage: int, shard: Path | None = None, next_stage: int | None = None) -> Node | ColdNode:
        """Start one node; `shard` and `next_stage` allow for mistakes."""
        self.nodes[stage] = self.spawn(self.command(stage, shard, next_stage), self.logs / f"stage-{stage}.log")
        return self.nodes[stage]

    def start_spare(self, stage: int) -> Node | ColdNode:
        """Start a spare beside a stage; it is kept as node `100 + stage`."""
        command = [
            "node",
            str(self.shards / f"stage-{stage}"),
            "--spare",
            "--next",
            self.next.get(stage, self.address(stage + 1)),
        ]
        command += ["--listen", f"tcp://127.0.0.1:{free_ports(1)[0]}", "--threads", "1", "--kv-memory", "256M", *self.common]
        self.nodes[100 + stage] = self.spawn(command, self.logs / f"stage-{100 + stage}.log")
        return self.nodes[100 + stage]

    def command(self, stage: int, shard: Path | None = None, next_stage: int | None = None) -> list[str]:
        """The arguments of `ring` that start a node."""
        command = ["node", str(shard or self.shards / f"stage-{stage}")]
        following = self.next.get(stage, self.address(stage + 1)) if next_stage is None else self.address(next_stage)
        command += ["--listen", self.address(stage), "--next", following, "--threads", "1", "--kv-memory", "256M"]
        command += [*self.common, *(self.options if stage == 0 else ())]
        return command + (["--clients", self.clients] if stage == 0 else [])

    def log(self, stage: int) -> str:
        """What a node has printed."""
        return (self.logs / f"stage-{stage}.log").read_text()

    def all_logs(self) -> str:
        """What all nodes have printed, for a failing test."""
        return "\n".join(f"--- stage {stage}\n{self.log(stage)}" for stage in sorted(self.nodes))

    def __enter__(self) -> Self:
        for stage in reversed(range(self.stages)):
            self.start(stage)
        asyncio.run(self.wait_for("ready"))
        return self

    async def wait_for(self, state: str, patience: float = START_TIMEOUT_S) -> Status:
        """Ask the head until the ring is in this state."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            for stage, node in self.nodes.items():
                if node.poll() is not None:
                    raise AssertionError(f"stage {stage} ended with {node.poll()}\n{self.all_logs()}")
            try:
                async with RingClient(self.clients, timeout=0.5, keys=self.keys) as client:
                    while time.monotonic() < deadline:
                        status = await client.status()
                        if status.state == state:
                            return status
                        await asyncio.sleep(0.05)
            except RingError:
                await asyncio.sleep(0.05)
        raise AssertionError(f"the ring was never '{state}'\n{self.all_logs()}")

    def stop(self, number: int = signal.SIGTERM) -> dict[int, int]:
        """Send a signal to all nodes; returns their exit codes."""
        for node in self.nodes.values():
            node.send_signal(number)
        codes = {}
        for stage, node in self.nodes.items():
            try:
                codes[stage] = node.wait()
            except TimeoutError:
                node.kill()
                codes[stage] = -signal.SIGKILL
        return codes

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
