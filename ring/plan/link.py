"""The link between two machines, measured over the ring's own kind of socket: one answers what the other sends.

`ring profile --listen` on one machine echoes short messages and counts long ones; `ring profile --to` on its neighbour
measures with them. A node that runs cannot be used for this, as it takes nothing but its ring's messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import zmq

from ring.wire.keys import Keys, authenticated
from ring.wire.sockets import bind, configure

PATIENCE_S = 10.0
SMALL, ROUNDS = 300, 200
"""Bytes of a message with token ids, and how often it goes back and forth."""
BLOCK, BLOCK_S = 1 << 20, 1.5
"""Bytes of a message that fills the link, and for how many seconds it is filled."""
MAX_MESSAGE = 4 << 20


class LinkError(ValueError):
    """A link that cannot be measured; the message is one sentence."""


def answer(address: str, keys: Keys | None, say: Callable[[str], None], stop: Callable[[], bool] = lambda: False) -> None:
    """Answer at an address until Ctrl-C: a short message with itself, a long one with its first byte.

    Raises:
        AddressError: it cannot be listened at.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with authenticated(context, keys):
            socket = bind(context, zmq.ROUTER, address, keys, MAX_MESSAGE)
            say(f"answering at {address}; run `ring profile --to` on the machine before this one, Ctrl-C ends it")
            try:
                while not stop():
                    if socket.poll(200):
                        peer, message = socket.recv_multipart()[:2]
                        socket.send_multipart([peer, message if len(message) <= SMALL else message[:1]])
            finally:
                socket.close(0)
    finally:
        context.term()


def measure(address: str, keys: Keys | None) -> tuple[float, float]:
    """Seconds of a message one way, and bits a second, to a machine that answers.

    Raises:
        LinkError: nothing answers there.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    configure(socket)
    if keys is not None:
        keys.connect(socket)

    def exchange(message: bytes) -> float:
        started = time.perf_counter()
        socket.send(message)
        if not socket.poll(int(PATIENCE_S * 1000)):
            raise LinkError(
                f"nothing answers at {address}; start `ring profile --listen ADDR` there, with keys if any are used"
            )
        socket.recv()
        return time.perf_counter() - started

    try:
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            raise LinkError(f"'{address}' is not an address such as tcp://beta:5700: {error.strerror or error}") from None
        exchange(b"x")
        round_trip = median(exchange(bytes(SMALL)) for _ in range(ROUNDS))
        block, sent, answered = bytes(BLOCK), 0, 0
        started = time.perf_counter()
        while time.perf_counter() - started < BLOCK_S or sent < 4:
            socket.send(block)
            sent += 1
            if sent - answered >= 4:  # so many on their way keep the link full
                if not socket.poll(int(PATIENCE_S * 1000)):
                    raise LinkError(f"{address} has stopped answering; start `ring profile --listen` there again")
                socket.recv()
                answered += 1
        while answered < sent:
            if not socket.poll(int(PATIENCE_S * 1000)):
                raise LinkError(f"{address} has stopped answering; start `ring profile --listen` there again")
            socket.recv()
            answered += 1
        seconds = max(time.perf_counter() - started - round_trip, 1e-9)
        return round_trip / 2, sent * BLOCK * 8 / seconds
    finally:
        context.destroy(linger=0)
