"""A real gateway process, and a checkpoint that can chat."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
from transformers import AutoTokenizer

from ring.client import RingClient
from ring.launch import free_ports
from ring.wire.clients import Status
from tests.e2e.harness import NodeRing
from tests.e2e.spawn import Node
from weights_tools.pocket import path as pocket_path
from weights_tools.split import split

TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('who is ' + m.role) }}"
    "{% endif %}# {{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}def {% endif %}"
)


class HttpServer:
    """`ring serve` for a ring, on a free port (or the one given); `url` is where."""

    def __init__(self, ring: NodeRing, *options: str, port: int | None = None) -> None:
        (self.port,) = free_ports(1) if port is None else (port,)
        self.url = f"http://127.0.0.1:{self.port}"
        self.ring = ring
        self.log_file = ring.logs / f"http-{self.port}.log"
        self.command = ["serve", "--head", ring.clients, "--port", str(self.port), *options]

    def __enter__(self) -> Self:
        self.process = Node(self.command, self.log_file)
        self.wait_for(200)
        return self

    def wait_for(self, status: int, path: str = "/health", patience: float = 60.0) -> Any:
        """Ask until a path answers with this status; returns the JSON."""
        deadline = time.monotonic() + patience
        last = "nothing"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the gateway ended with {self.process.poll()}\n{self.log()}")
            try:
                response = httpx2.get(self.url + path, timeout=5)
                if response.status_code == status:
                    return response.json()
                last = response.text
            except httpx2.TransportError as error:
                last = repr(error)
            time.sleep(0.05)
        raise AssertionError(f"{path} was never {status}, but {last}\n{self.log()}")

    def log(self) -> str:
        """What it has printed."""
        return self.log_file.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.stop()


async def idle(clients: str, patience: float = 30.0) -> Status:
    """The ring's status once nothing runs or waits and no stage holds any KV cache."""
    async with asyncio.timeout(patience), RingClient(clients) as client:
        while True:
            status = await client.status()
            left = status.running, status.waiting, status.kv_used, *(stage.kv_used for stage in status.stages)
            if not any(left):
                return status
            await asyncio.sleep(0.05)


def chat_shards(folder: Path) -> Path:
    """The pocket model with a chat template, in float32, cut into two."""
    checkpoint = folder / "chatty"
    checkpoint.mkdir()
    for file in pocket_path().iterdir():
        if file.is_file():
            (checkpoint / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(pocket_path())
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(checkpoint)
    split(str(checkpoint), folder / "shards", stages=2, dtype="float32")
    return folder / "shards"
