"""Node processes that start at once: real processes, forked from one that has done the five seconds of imports already."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerProcess
from pathlib import Path

CLONE_NEWNET = 0x40000000

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.e2e.preload"])


class Node:
    """A process that runs the `ring` command with `arguments`, its output going to `log`; in a network namespace, if given."""

    def __init__(self, arguments: list[str], log: Path, namespace: str | None = None) -> None:
        log.touch()
        given = (arguments, str(log), None, namespace)
        self._process: ForkServerProcess = context.Process(target=run_ring, args=given, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 20.0) -> int:
        """Its exit code, once it has ended.

        Raises:
            TimeoutError: it has not.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise TimeoutError(f"process {self.pid} has not ended")
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        self.send_signal(signal.SIGKILL)
        self.wait()


class ColdNode(subprocess.Popen[bytes]):
    """The same as a program of its own: slow to start, but its memory is what a user's node takes."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        with log.open("ab") as file:
            super().__init__([sys.executable, "-m", "ring", *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def wait(self, timeout: float | None = 20.0) -> int:
        """As `Node.wait`."""
        try:
            return super().wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"process {self.pid} has not ended") from None


def enter(namespace: str) -> None:
    """Have this thread, and those that it starts, use a network namespace that `ip netns` made.

    Raises:
        OSError: there is none, or it is not permitted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `ring` with these words to its end, with nothing to read."""
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("out", "err")]
        process = context.Process(target=run_ring, args=(list(words), *files), daemon=True)
        process.start()
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(words, process.exitcode, *(Path(file).read_text() for file in files))


def run_ring(arguments: list[str], out: str, err: str | None = None, namespace: str | None = None) -> None:
    """What the forked process does."""
    if namespace is not None:
        enter(namespace)
    for number, name in ((1, out), (2, err or out)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ |= {"PYTHONWARNINGS": "ignore", "COLUMNS": "400"}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["ring", *arguments]
    from ring.__main__ import main

    main()
