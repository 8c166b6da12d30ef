"""`ring serve`: the HTTP server, from its socket to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from asyncio import TimerHandle, Transport
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ring.gateway.app import Access, Gateway, Limits
from ring.gateway.auth import is_loopback
from ring.parent import stop_with_parent
from ring.wire.clients import DEFAULT_HEAD

HEADERS_PATIENCE_S = 15.0
DRAIN_S = 10.0
log = logging.getLogger("ring")


class ServeError(ValueError):
    """A server that cannot start; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `ring serve` is told. `keys` are the digests of API keys, `ring_keys` the folder of the machine's own keys for
    the ring; `drain_s` is how long streams may go on after Ctrl-C or SIGTERM."""

    head: str = DEFAULT_HEAD
    host: str = "127.0.0.1"
    port: int = 8000
    keys: list[bytes] = field(default_factory=list)
    allow_anyone: bool = False
    origins: list[str] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)
    drain_s: float = DRAIN_S
    with_parent: bool = False
    ring_keys: Path | None = None
    insecure: bool = False


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, but a connection that does not come to the end of a request's headers is closed: uvicorn itself
    waits for ever."""

    _deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """A client has connected, and should say something."""
        super().connection_made(transport)
        self._hurry()

    def data_received(self, data: bytes) -> None:
        """It says something; the body, once the headers are there, has a limit of its own."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._hurry()
        else:
            self._relax()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._relax()
        super().connection_lost(exc)

    def _hurry(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADERS_PATIENCE_S, self.transport.close)

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class GatewayServer(uvicorn.Server):
    """uvicorn's server; when it stops, running answers may finish, and those that are too slow end with an error."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, drain_s: float) -> None:
        super().__init__(config)
        self.gateway = gateway
        self.drain_s = drain_s

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """SIGINT and SIGTERM stop it gently, a second one at once; they are not raised again afterwards."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self.should_exit:
            self.force_exit = True
        elif self.gateway.desk.running:
            log.info("stopping: %d answers may finish within %g s", self.gateway.desk.running, self.drain_s)
        self.should_exit = True
        self.gateway.desk.drain(0.0 if self.force_exit else self.drain_s)


def run_serve(options: ServeOptions) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        ServeError: it cannot start.
    """
    local = is_loopback(options.host)
    if not local and not options.keys and not options.allow_anyone:
        raise ServeError(
            f"{options.host} can be reached from other machines: give an --api-key-file, or --allow-anyone if anyone may use it"
        )
    if options.with_parent:
        stop_with_parent()
    configure_logging()
    listener = listen(options.host, options.port)
    host, port = listener.getsockname()[:2]
    access = Access(options.keys, local and not options.keys, options.origins)
    gateway = Gateway(options.head, options.limits, access, options.ring_keys, options.insecure)
    config = uvicorn.Config(
        gateway.app(),
        http=PatientProtocol,
        loop="asyncio",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(options.drain_s) + 5,
    )
    log.info("serving http://%s:%d, the head is %s", f"[{host}]" if ":" in host else host, port, options.head)
    server = GatewayServer(config, gateway, options.drain_s)
    asyncio.run(server.serve([listener]))
    log.info("stopped")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ServeError: it cannot, in a sentence.
    """
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ServeError(f"cannot serve at {host}:{port}: {error.strerror}; choose another port or address") from None
    return listener


def configure_logging() -> None:
    """One plain line for each thing that happens, to standard error."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in ("ring", "ring.access"):
        logging.getLogger(name).setLevel(logging.INFO)
