"""A ring to measure: real node processes on loopback, forked from one that has done the imports already."""

from __future__ import annotations

import asyncio
import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from ring.answers import RingError
from ring.bench.shapes import BenchError
from ring.client import RingClient
from ring.launch import free_ports

START_TIMEOUT_S = 180.0

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["ring.bench.child"])


def end_server() -> None:
    """End the process that nodes are forked from; by itself it would outlive this one, by the seconds torch takes to go."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it may have ended meanwhile
            if any("multiprocessing.forkserver" in word for word in child.cmdline()):
                child.kill()
                child.wait()


atexit.register(end_server)


@dataclass
class BenchRing:
    """The nodes of a ring, ready when the block begins and gone when it ends.

    Args:
        shards: a folder with `stage-0` ….
        stages: how many.
        options: further arguments of every `ring node`.
        emulate: for each stage the milliseconds that it takes a microbatch; None computes for real.
        token_ms: with `emulate`, the least time a token takes, so that a full microbatch takes longer.
        delay_ms: with `emulate`, what every link adds.
        period: with `emulate`, after how many tokens what is generated repeats; None: hardly ever.
        slow: how many times as long the last stage takes, by sleeping.
        pin: one core for each node, as far as there are cores.
    """

    shards: Path
    stages: int
    options: list[str] = field(default_factory=list)
    emulate: list[float] | None = None
    token_ms: float = 0.0
    delay_ms: float = 0.0
    period: int | None = None
    slow: float = 1.0
    pin: bool = False
    processes: list[ForkServerProcess] = field(default_factory=list)

    def __enter__(self) -> Self:
        *ports, client_port = free_ports(self.stages + 1)
        self.clients = f"tcp://127.0.0.1:{client_port}"
        self._addresses = [f"tcp://127.0.0.1:{port}" for port in ports]
        self._logs = tempfile.TemporaryDirectory(prefix="ring-bench-")
        self.processes += [self._start(stage) for stage in range(self.stages)]
        try:
            asyncio.run(self._wait())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self, stage: int) -> ForkServerProcess:
        from ring.bench.child import Emulation, run

        command = ["node", str(self.shards / f"stage-{stage}"), "--with-parent", "--no-verify"]
        command += ["--listen", self._addresses[stage], "--next", self._addresses[(stage + 1) % self.stages]]
        command += ["--clients", self.clients] if stage == 0 else []
        emulation = None if self.emulate is None else Emulation(self.emulate[stage], self.token_ms, self.delay_ms, self.period)
        slow = self.slow if stage == self.stages - 1 else 1.0
        core = stage % (os.cpu_count() or 1) if self.pin else None
        arguments = ([*command, *self.options], str(self.log(stage)), emulation, core, slow)
        process = context.Process(target=run, args=arguments, daemon=True)
        process.start()
        return process

    def lose(self, stage: int) -> None:
        """`kill -9` a node and start it again at once; returns before it is back."""
        self.processes[stage].kill()
        self.processes[stage].join()
        self.processes[stage] = self._start(stage)

    def log(self, stage: int) -> Path:
        """What a node has printed."""
        return Path(self._logs.name) / f"stage-{stage}.log"

    async def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            for stage, process in enumerate(self.processes):
                if process.exitcode is not None:
                    raise BenchError(f"stage {stage} ended: {self.log(stage).read_text().strip()[-500:]}")
            try:
                async with RingClient(self.clients, timeout=0.5) as client:
                    if (await client.status()).state == "ready":
                        return
            except RingError:
                pass
            await asyncio.sleep(0.1)
        raise BenchError(f"the ring did not form within {START_TIMEOUT_S:.0f} s")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self.processes:
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)
        for process in self.processes:
            process.join(5)
            if process.exitcode is None:
                process.kill()
                process.join()
        self.processes.clear()
        self._logs.cleanup()


def environment() -> dict[str, object]:
    """Where and with what a figure was measured."""
    import platform

    import torch
    import transformers

    from ring import __version__

    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "ring": __version__,
    }
