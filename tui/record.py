"""Recordings: what the dashboard was told, as JSON lines, to play again without a ring. docs/dashboard.md has the format."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ring.wire.clients import Event
from ring.wire.messages import PROTOCOL
from tui.feed import Take, ignore
from tui.messages import Asked, Ended, Message, Options

VERSION = 1
SPEEDS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
STEP_S = 0.05
LONGEST_LINE = 64 << 20


class RecordingError(ValueError):
    """A file that cannot be written or played; the message is one sentence."""


class Header(msgspec.Struct, tag="recording"):
    """The first line. `started` is in seconds since 1970."""

    version: int
    protocol: int
    head: str
    started: float


class Recorder:
    """Writes messages to a file as they come.

    Raises:
        RecordingError: the file cannot be written, now or later.
    """

    def __init__(self, path: Path, head: str, started: float) -> None:
        self.path = path
        self._encoder = msgspec.json.Encoder()
        try:
            self._file = path.open("wb", buffering=1 << 16)
        except OSError as error:
            raise RecordingError(f"cannot write {path}: {error.strerror}") from None
        self._write(self._encoder.encode(Header(VERSION, PROTOCOL, head, started)) + b"\n")
        self.flush()

    def take(self, message: Message, at: float) -> None:
        """Write one message, `at` seconds after the start."""
        self._write(b'{"t":%.6f,' % at + self._encoder.encode(message)[1:] + b"\n")

    def flush(self) -> None:
        """Put what is buffered on disk."""
        try:
            self._file.flush()
        except OSError as error:
            raise RecordingError(f"cannot write {self.path}: {error.strerror}") from None

    def close(self) -> None:
        """Write what is left."""
        self.flush()
        self._file.close()

    def _write(self, line: bytes) -> None:
        try:
            self._file.write(line)
        except OSError as error:
            raise RecordingError(f"cannot write {self.path}: {error.strerror}") from None


class ReplayFeed:
    """A recording behind the feed's interface. `speed` may change while it plays; 0 holds it.

    Raises:
        RecordingError: the file is not a recording, or one of another version.
    """

    def __init__(self, path: Path, speed: float = 1.0) -> None:
        self.path = path
        self.speed = speed
        self.take: Take = ignore
        self.over = False
        header = read_header(path)
        self.name, self.started = header.head, header.started
        self.duration = last_time(path)
        self._now = 0.0

    def now(self) -> float:
        """The recording's own time."""
        return self._now

    async def run(self) -> None:
        """Play it, each message at its time."""
        loop = asyncio.get_running_loop()
        until, before = 0.0, loop.time()
        for at, message in read_messages(self.path):
            while until < at:
                await asyncio.sleep(STEP_S)
                before, passed = loop.time(), loop.time() - before
                until += passed * self.speed
                self._now = max(self._now, min(at, until))
            self._now = max(self._now, at)
            self.take(message)
        self.over = True

    async def ask(self, stream: int, prompt: str, options: Options) -> None:
        """A recording answers nothing."""
        self.take(Asked(stream, prompt, options))
        self.take(Ended(stream, "failed", "replay", "this is a recording; it answers no prompts"))

    def change_speed(self, steps: int) -> None:
        """Faster or slower by so many steps."""
        nearest = min(range(len(SPEEDS)), key=lambda index: abs(SPEEDS[index] - self.speed))
        self.speed = SPEEDS[max(0, min(len(SPEEDS) - 1, nearest + steps))]


def read_header(path: Path) -> Header:
    """A recording's first line, checked."""
    try:
        with path.open("rb") as file:
            first = file.readline(1 << 16)
        header = msgspec.json.decode(first, type=Header)
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, ValueError):
        raise RecordingError(f"{path} is not a recording of this dashboard") from None
    if header.version != VERSION:
        raise RecordingError(f"{path} is a recording of version {header.version}; this program plays version {VERSION}")
    return header


def read_messages(path: Path) -> Iterator[tuple[float, Message]]:
    """Its messages and their times, line by line; ends where a line cannot be read, saying so as an event."""
    at = 0.0
    with path.open("rb") as file:
        file.readline(1 << 16)
        number = 1
        while line := file.readline(LONGEST_LINE):
            number += 1
            try:
                at, message = parse(line)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                yield at, Event(0, 0.0, "error", -1, f"the recording ends here: line {number} cannot be read ({error})")
                return
            yield at, message


def parse(line: bytes) -> tuple[float, Message]:
    """One line: its time and its message."""
    raw = msgspec.json.decode(line)
    at = float(raw.pop("t"))
    message: Message = msgspec.convert(raw, Message)
    return at, message


def last_time(path: Path) -> float:
    """When the last whole line is, read from the file's end; 0 if there is none."""
    with path.open("rb") as file:
        file.seek(max(0, os.path.getsize(path) - (1 << 18)))
        for line in reversed(file.read().splitlines()):
            try:
                return parse(line)[0]
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
    return 0.0
