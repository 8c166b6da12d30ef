"""What became of a connection, read from a socket's monitor: above all, whether it is the keys that do not fit."""

from __future__ import annotations

import struct
from typing import Any

import zmq

from ring.wire.keys import Keys

EVENTS = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
ENOUGH = 3
"""A peer that breaks off so many handshakes in a row is not merely going down."""


class Handshakes:
    """Follows the connections of one socket to `address`, made with `keys` or without.

    `refusal` is one sentence as soon as it is certain that the keys do not fit, with what to do about it. A peer whose
    keys have fitted once is known, and a handshake that it breaks off later says nothing of keys.
    """

    def __init__(self, socket: zmq.Socket[bytes], address: str, keys: Keys | None) -> None:
        self.monitor: zmq.Socket[Any] = socket.get_monitor_socket(EVENTS)
        self.address = address
        self.keys = keys
        self.refusal: str | None = None
        self._connected = False
        self._known = False
        self._broken_off = 0

    def look(self) -> bool:
        """Take note of what has happened; returns whether a connection was lost, or refused for good."""
        lost = False
        while self.monitor.poll(0):
            event, value = struct.unpack("=HI", self.monitor.recv_multipart()[0])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = self._known = True
                self.refusal, self._broken_off = None, 0
            elif event == zmq.EVENT_DISCONNECTED:
                lost |= self._connected  # before the handshake there was no connection to lose
                self._connected = False
            elif (refusal := self._judge(event, value)) is not None:
                self.refusal, lost = refusal, True
        return lost

    def _judge(self, event: int, value: int) -> str | None:
        """Why a handshake failed, if it was for the keys."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH and self.keys is not None:
            return (
                f"the head at {self.address} does not let in the key of {self.keys.folder}; on its machine, run "
                f"`ring keys allow` with a name for this one and {self.keys.my_public.decode()}"
            )
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            if self.keys is None:
                return asks_for_keys(self.address)
            return f"the head at {self.address} uses no keys; leave out --keys and RING_KEYS, or start its ring with keys"
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and not self._known:
            # Either end may break off first when only one has keys, so a mismatch is not always seen as one.
            self._broken_off += 1
            if self._broken_off >= ENOUGH:
                if self.keys is None:
                    return asks_for_keys(self.address)
                return (
                    f"what listens at {self.address} breaks off when it sees the keys of {self.keys.folder}: they are another "
                    "ring's, or it uses no keys; give --keys the folder that was made together with its own, or leave it out"
                )
        return None


def asks_for_keys(address: str) -> str:
    """What to tell who has none."""
    return f"the head at {address} asks for keys; give --keys the folder that `ring keys new` made for this one"
