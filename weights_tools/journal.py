"""The journal of a shard's file that is being written: how far each tensor is, so that a killed fetch goes on from there."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from weights_tools.convert import PIECE

if TYPE_CHECKING:
    from hashlib import _Hash

STEP = 8 * PIECE
"""A line for every so many bytes of a tensor, and one at its end."""


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first `bytes` bytes of a tensor are in the file, and this is their sha256 (hex)."""

    tensor: str
    bytes: int
    sha256: str


class Journal:
    """Lines of JSON; the first says what is being written, and if that is something else now, all of it is void.

    A line may be cut off, and what it tells of may not have reached the disk before the machine lost power. So a line is
    taken for a hint: what it says is in the file counts only if it still has that hash. `kept` counts the bytes that did.
    """

    def __init__(self, path: Path, subject: str) -> None:
        self.reached: dict[str, Line] = {}
        self.is_new = True
        self.kept = 0
        lines = path.read_bytes().splitlines() if path.exists() else []
        if lines and lines[0] == subject.encode():
            self.is_new = False
            for line in lines[1:]:
                try:
                    entry = msgspec.json.decode(line, type=Line)
                except msgspec.DecodeError:
                    continue
                self.reached[entry.tensor] = entry
        elif lines:
            path.unlink()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._lock = threading.Lock()
        # A cut-off last line must not swallow the next one.
        os.write(self._file, b"\n" if lines and not self.is_new else subject.encode() + b"\n")

    def note(self, tensor: str, done: int, digest: _Hash) -> None:
        """So much of a tensor has been written."""
        line = msgspec.json.encode(Line(tensor, done, digest.copy().hexdigest())) + b"\n"
        with self._lock:
            os.write(self._file, line)

    def claims(self, tensor: str) -> int:
        """How many bytes of a tensor are said to be there, whether or not they are."""
        line = self.reached.get(tensor)
        return 0 if line is None else line.bytes

    def recall(self, tensor: str, fd: int, offset: int) -> tuple[int, _Hash]:
        """How much of a tensor is in the file `fd` from `offset` on, with the hash it was written with; and that hash."""
        digest = hashlib.sha256()
        line = self.reached.get(tensor)
        if line is None:
            return 0, digest
        at = 0
        while at < line.bytes and (piece := os.pread(fd, min(PIECE, line.bytes - at), offset + at)):
            digest.update(piece)
            at += len(piece)
        if digest.hexdigest() == line.sha256:
            with self._lock:
                self.kept += at
            return at, digest
        return 0, hashlib.sha256()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)
