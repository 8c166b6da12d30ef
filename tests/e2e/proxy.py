"""A TCP connection that can be cut like a cable: nothing more gets through, and neither end is told."""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType
from typing import Self


class Cable:
    """Passes bytes from a port of its own to another, until `cut`; `mend` lets new connections through again."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.whole = True
        self._wake, self._woken = socket.socketpair()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def cut(self) -> None:
        """Let nothing through."""
        self.whole = False

    def mend(self) -> None:
        """Let everything through."""
        self.whole = True

    def _run(self) -> None:
        ends: dict[socket.socket, socket.socket] = {}
        while not self._closing:
            for key, _ in self._selector.select():
                source = key.fileobj
                assert isinstance(source, socket.socket)
                if source is self.listener:
                    self._accept(ends)
                elif source in ends:
                    self._pass_on(source, ends)
        for end in ends:
            end.close()

    def _accept(self, ends: dict[socket.socket, socket.socket]) -> None:
        near, _ = self.listener.accept()
        far = socket.socket()
        if not self.whole or far.connect_ex(("127.0.0.1", self.target)):
            near.close()
            far.close()
            return
        for end, other in ((near, far), (far, near)):
            ends[end] = other
            self._selector.register(end, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket, ends: dict[socket.socket, socket.socket]) -> None:
        try:
            data = source.recv(1 << 16)
            if data and not self.whole:
                return  # lost on the way
            if data:
                ends[source].sendall(data)
                return
        except OSError:
            pass
        for end in (source, ends[source]):
            self._selector.unregister(end)
            ends.pop(end)
            end.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing = True
        self._wake.send(b"x")
        self._thread.join()
        self.listener.close()
        self._wake.close()
        self._woken.close()
        self._selector.close()
