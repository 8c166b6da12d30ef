"""A whole ring on this machine: one process for each stage, watched, restarted, and never left behind."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

STUCK = 70
"""The exit code of a node whose watchdog gave up on it (EX_SOFTWARE in sysexits.h)."""
RESTARTS = 3
WITHIN_S = 60.0
"""A node that ends more often than that within so many seconds is not started again."""
STOP_PATIENCE_S = 5.0
PORTS = (20_000, 32_000)
DRAIN_S = 2.0
GATEWAY_LOG = "gateway.log"


class LaunchError(ValueError):
    """The ring could not be started or has come to an end; the message is one sentence."""


@dataclass
class LocalRing:
    """The processes of a ring on loopback.

    Args:
        shards: a folder with `stage-0` ... as `ring split` makes it.
        stages: how many.
        clients: where the head serves clients.
        logs: a folder for one log file a stage.
        options: further arguments for every `ring node`.
        say: prints a line for the user.
        http: the port of loopback at which a gateway serves HTTP; None for no gateway.
    """

    shards: Path
    stages: int
    clients: str
    logs: Path
    options: list[str]
    say: Callable[[str], None]
    http: int | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    gateway: subprocess.Popen[bytes] | None = None
    failure: str | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Start all nodes and watch them from a thread of their own.

        The nodes ask the kernel to end them with the *thread* that started them, so that one must live as long.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        ports = free_ports(self.stages)
        self._addresses = [f"tcp://127.0.0.1:{port}" for port in ports]
        self._started = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._watcher.start()
        self._started.wait()

    def _watch(self) -> None:
        self.processes = [self._spawn(stage) for stage in range(self.stages)]
        self.gateway = None if self.http is None else self._spawn_gateway(self.http)
        self._started.set()
        restarts: list[list[float]] = [[] for _ in range(self.stages)]
        while not self._stopping.wait(0.1):
            if self.gateway is not None and (code := self.gateway.poll()) is not None:
                self.failure = f"the HTTP gateway ended ({describe_exit(code)}): {last_line(self.logs / GATEWAY_LOG)}"
                return
            for stage, process in enumerate(self.processes):
                code = process.poll()
                if code is None:
                    continue
                cause = f"stage {stage} ended ({describe_exit(code)})"
                now = time.monotonic()
                recent = restarts[stage] = [at for at in restarts[stage] if at > now - WITHIN_S]
                # A node that gives up by itself has a reason that a restart would not change, unless it was stuck.
                if (code > 0 and code != STUCK) or len(recent) >= RESTARTS:
                    self.failure = f"{cause}: {last_line(self.log_file(stage))}"
                    return
                recent.append(now)
                self.say(f"{cause}; starting it again")
                self.processes[stage] = self._spawn(stage)

    def _spawn(self, stage: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ring", "node", str(self.shards / f"stage-{stage}"), "--with-parent"]
        command += ["--listen", self._addresses[stage], "--next", self._addresses[(stage + 1) % self.stages]]
        command += ["--clients", self.clients] if stage == 0 else []
        return spawn([*command, *self.options], self.log_file(stage))

    def _spawn_gateway(self, port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ring", "serve", "--with-parent", "--head", self.clients]
        return spawn([*command, "--port", str(port), "--drain", str(DRAIN_S)], self.logs / GATEWAY_LOG)

    def log_file(self, stage: int) -> Path:
        """Where a stage's output goes."""
        return self.logs / f"stage-{stage}.log"

    def check(self) -> None:
        """Raises LaunchError if the ring has come to an end."""
        if self.failure:
            raise LaunchError(self.failure)

    def stop(self) -> None:
        """End every node, by SIGINT first; returns when none is left."""
        self._stopping.set()
        self._watcher.join()
        if self.gateway is not None:  # before the nodes, so that answers can still finish
            end([self.gateway], signal.SIGTERM, DRAIN_S + STOP_PATIENCE_S)
        end(self.processes, signal.SIGINT, STOP_PATIENCE_S)  # which, unlike SIGTERM, does not wait for streams


def spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process whose output goes to a file."""
    with log.open("ab") as file:
        # A session of its own: Ctrl-C in the terminal reaches this process only, which then stops the others.
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)


def end(processes: list[subprocess.Popen[bytes]], number: signal.Signals, patience_s: float) -> None:
    """Send a signal to those that still run, and SIGKILL to those that take too long; returns when none is left."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)
    deadline = time.monotonic() + patience_s
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_line(log: Path) -> str:
    """The last thing that a process said."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else f"it said nothing (see {log})"


def describe_exit(code: int) -> str:
    """An exit code in words."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def free_ports(count: int) -> list[int]:
    """Free TCP ports on loopback, below those that the kernel gives to outgoing connections: a node that is started again
    must find its port as it left it."""
    sockets: list[socket.socket] = []
    try:
        for port in random.sample(range(*PORTS), PORTS[1] - PORTS[0]):
            if len(sockets) == count:
                break
            one = socket.socket()
            sockets.append(one)
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                sockets.pop().close()
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def cache_folder() -> Path:
    """Where splits and logs are kept: `$RING_CACHE`, else `ring` in the user's cache folder."""
    if folder := os.environ.get("RING_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ring"
