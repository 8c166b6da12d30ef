"""The `ring` command on a terminal of its own: a pseudo-terminal, and pyte to read what it shows."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import sys
import termios
import threading
from types import TracebackType
from typing import Self

import pyte

PATIENCE_S = 25.0


class Terminal:
    """`ring` with these arguments, running; the screen is read in a thread of its own, so that it never waits."""

    def __init__(self, arguments: list[str], columns: int = 140, lines: int = 40) -> None:
        self.received = 0
        self.exit_code: int | None = None
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.pid, self._fd = pty.fork()
        if self.pid == 0:  # the child
            # Given in full, as readline puts COLUMNS and LINES where os.environ does not see them.
            kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
            kept |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
            os.execve(sys.executable, [sys.executable, "-m", "ring", *arguments], kept)
        self.resize(columns, lines)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:
                return
            if not data:
                return
            with self._lock:
                self.received += len(data)
                self._stream.feed(data)

    def keys(self, text: str) -> None:
        """Keys, as a terminal sends them."""
        os.write(self._fd, text.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the window's size."""
        with self._lock:
            self._screen.resize(lines, columns)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    @property
    def text(self) -> str:
        """What is on the screen."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screen.display)

    async def until(self, *words: str, patience: float = PATIENCE_S) -> str:
        """Until all of these are on the screen; returns it."""
        try:
            async with asyncio.timeout(patience):
                while not all(word in self.text for word in words):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            missing = [word for word in words if word not in self.text]
            raise AssertionError(f"never shown: {missing}\n{self.text}") from None
        return self.text

    async def ended(self, patience: float = PATIENCE_S) -> int:
        """Its exit code, once it has ended by itself."""
        async with asyncio.timeout(patience):
            while self.exit_code is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)  # noqa: ASYNC222
                if pid:
                    self.exit_code = os.waitstatus_to_exitcode(status)
                await asyncio.sleep(0.02)
        return self.exit_code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.exit_code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)
