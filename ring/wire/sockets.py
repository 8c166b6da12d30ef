"""How every TCP socket of a ring is opened and set up."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import zmq

from ring.wire.keys import Keys

HEARTBEAT_MS = 300
HEARTBEAT_TIMEOUT_MS = 1200
"""A machine that vanishes, or whose process is stopped, is noticed after this; one that computes answers all the same, as
libzmq does that in a thread of its own."""
MAX_FRAME = 1 << 30


class AddressError(ValueError):
    """An address that cannot be used; the message is one sentence."""


def bind(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, address: str, keys: Keys | None = None, max_frame: int = MAX_FRAME
) -> zmq.Socket[bytes]:
    """A bound socket with heartbeats and a limit on the size of what it takes; with `keys`, for those on their list only.

    Raises:
        AddressError: malformed, in use, or not an address of this machine.
    """
    socket = context.socket(kind)
    configure(socket)
    socket.maxmsgsize = max_frame
    if keys is not None:
        keys.serve(socket)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close(0)
        raise AddressError(f"cannot listen on {address}: {error.strerror or error}") from None
    return socket


def configure(socket: zmq.Socket[Any]) -> None:
    """What every TCP socket of a ring has: heartbeats, so that a dead peer is noticed, and no linger at exit."""
    socket.linger = 0
    socket.heartbeat_ivl = HEARTBEAT_MS
    socket.heartbeat_timeout = HEARTBEAT_TIMEOUT_MS
    socket.heartbeat_ttl = HEARTBEAT_TIMEOUT_MS
    socket.tcp_keepalive = 1


def is_exposed(address: str) -> bool:
    """Whether an address can be reached from other machines."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    return parts.scheme == "tcp" and host != "localhost" and not host.startswith("127.") and host != "::1"
