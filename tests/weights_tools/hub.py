"""A stand-in for the Hugging Face Hub: one folder over HTTP with ranges, and every fault that a network has."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

REPO = "someone/checkpoint"
COMMIT = "c0ffee" * 6 + "c0de"
SLICE = 16 << 10


@dataclass
class Request:
    """What was asked for; `end` is None for a whole file."""

    number: int
    file: str
    revision: str
    start: int
    end: int | None
    headers: dict[str, str]


@dataclass
class Hub:
    """Serves `folder` as `REPO`.

    `fault` is called with each request and names what goes wrong with it, if anything: `500`, `429`, `403`, `reset` (the
    connection, half-way), `truncate` (closed in good order, half-way), `stall` (half-way, until the hub closes), `ignore` (the
    whole file instead of a part), `shift` (another part), `flip` (a bit), `more` (than was asked for). `pace` is called after
    every slice that is sent, with the bytes sent so far. With a `store`, it only says where that has the file.
    """

    folder: Path
    fault: Callable[[Request], str | None] = lambda _: None
    pace: Callable[[int], None] = lambda _: None
    names_commits: bool = True
    etags: bool = True
    store: Hub | None = None
    requests: list[Request] = field(default_factory=list)
    sent: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that are gone
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """One request."""
        match = re.fullmatch(rf"/{REPO}/resolve/([^/]+)/([\w.-]+)", handler.path)
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
        path = self.folder / match[2] if match else None
        if match is None or path is None or not path.is_file():
            handler.send_response(404)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        size = path.stat().st_size
        start, end = int(part[1]) if part else 0, int(part[2]) + 1 if part and part[2] else (size if part else None)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self.lock:
            request = Request(len(self.requests), match[2], match[1], start, end, headers)
            self.requests.append(request)
        if self.store is not None:
            handler.send_response(302)
            handler.send_header("Location", self.store.endpoint.replace("127.0.0.1", "localhost") + handler.path)
            handler.send_header("Content-Length", "0")
            handler.send_header("X-Repo-Commit", COMMIT)
            handler.end_headers()
            return
        self.send(handler, path, request, self.fault(request))

    def send(self, handler: BaseHTTPRequestHandler, path: Path, request: Request, fault: str | None) -> None:
        """Send what was asked for, or do what the fault says."""
        size = path.stat().st_size
        if fault in ("500", "429", "403"):
            handler.send_response(int(fault))
            handler.send_header("Content-Length", "5")
            handler.end_headers()
            handler.wfile.write(b"sorry")
            return
        start, end = request.start, request.end
        if end is None or fault == "ignore":
            start, end, code = 0, size, 200
        else:
            code = 206
            start, end = (max(0, start - 1), end - 1) if fault == "shift" else (start, end)
            end = min(end + (1000 if fault == "more" else 0), size)
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(end - start)
        body = body[:-1] + bytes([body[-1] ^ 1]) if fault == "flip" else body
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body)))
        if code == 206:
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        if self.etags:
            handler.send_header("ETag", f'"{digest(path, path.stat().st_mtime_ns)}"')
        if self.names_commits:
            handler.send_header("X-Repo-Commit", COMMIT)
        handler.end_headers()
        stop = len(body) // 2 if fault in ("reset", "truncate", "stall") else len(body)
        for at in range(0, stop, SLICE):
            piece = body[at : min(at + SLICE, stop)]
            handler.wfile.write(piece)
            with self.lock:
                self.sent += len(piece)
            self.pace(self.sent)
        if fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif fault == "stall":
            handler.wfile.flush()
            self.closing.wait(30)
        if fault in ("reset", "truncate", "stall"):
            handler.close_connection = True


@cache
def digest(path: Path, changed_at: int) -> str:
    """A file's sha256, as long as it does not change."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
