"""The sockets between nodes: an Inbox that receives while the stage computes, and an Outbox to the next node."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from math import ceil

import zmq
from zmq.utils.monitor import recv_monitor_message

from ring.wire.frames import Arrived, Buffer, WireError, decode
from ring.wire.keys import Keys
from ring.wire.messages import Hello
from ring.wire.sockets import AddressError, bind, configure

log = logging.getLogger("ring")

QUEUE_LIMIT = 32
"""Messages that may wait on a link. In flight are a few microbatches and now and then a short message, so it is never
reached while the next node takes what it is sent; when it does not, the sender waits."""


class LinkLost:
    """In place of a message: the predecessor's connection has ended."""


class Arrivals:
    """What a stage has yet to handle, in order. `newest` is the highest epoch that a Hello among it has had, so that the
    stage, while it waits to send something older, knows to give up. None ends the loop."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Arrived | LinkLost | None] = queue.SimpleQueue()
        self.newest = -1

    def put(self, arrived: Arrived | LinkLost | None) -> None:
        """Add one; from any thread."""
        if isinstance(arrived, Arrived) and isinstance(arrived.message, Hello):
            self.newest = max(self.newest, arrived.message.epoch)
        self._queue.put(arrived)

    def get(self, timeout: float | None = None) -> Arrived | LinkLost | None:
        """The next, waiting for it.

        Raises:
            queue.Empty: none came within `timeout` seconds.
        """
        return self._queue.get(timeout=timeout)

    def empty(self) -> bool:
        """Whether none is waiting."""
        return self._queue.empty()


class RingReceiver:
    """The PULL socket at which a node's predecessor delivers, and what it thinks of arrivals.

    Bytes that are no message are counted in `refused` and dropped. `predecessor` is the incarnation of the node whose
    connection is watched: others may come and go, which means nothing. Use from one thread, that attribute aside.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, keys: Keys | None) -> None:
        self.socket = bind(context, zmq.PULL, address, keys)
        self.socket.rcvhwm = QUEUE_LIMIT
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.refused = 0
        self.predecessor = 0
        self._connection = -1

    def receive(self) -> Arrived | None:
        """The next message that is waiting, or None."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            received = time.monotonic_ns()
            try:
                arrived = decode([frame.buffer for frame in frames], received)
                if arrived.message.sender == self.predecessor:
                    self._connection = int(frames[0].get(zmq.SRCFD))
                return arrived
            except WireError as error:
                self.refused += 1
                if self.refused & (self.refused - 1) == 0:  # 1st, 2nd, 4th, 8th: a flood must not flood the log
                    log.warning("refused %d message(s) that are not this ring's: %s", self.refused, error)

    def lost_peer(self) -> bool:
        """Whether the predecessor's connection has ended since the last call."""
        lost = False
        while self.monitor.poll(0):
            if recv_monitor_message(self.monitor)["value"] == self._connection:
                self._connection, lost = -1, True
        return lost

    def close(self) -> None:
        """Close from the thread that uses it."""
        self.monitor.close(0)
        self.socket.close(0)


class Inbox(Arrivals):
    """What arrives for a stage over the wire.

    While the stage computes, a thread receives, so that arrivals are stamped when they come. A stage that has nothing to
    do borrows the socket and receives by itself: to be woken by the thread would cost about half of what the wire does.

    The thread ends when the context is terminated.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, keys: Keys | None) -> None:
        super().__init__()
        self.receiver = RingReceiver(context, address, keys)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # open as long as the process: signal handlers write to it
        self._poller = zmq.Poller()
        for waited in (self.receiver.socket, self.receiver.monitor, self._wake):
            self._poller.register(waited, zmq.POLLIN)
        self._wanted = False
        self._lent, self._returned = threading.Lock(), threading.Lock()  # each held until the other side may go on
        self._lent.acquire()
        self._returned.acquire()
        self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)

    def start(self) -> None:
        """Begin to receive."""
        self._thread.start()

    def put(self, arrived: Arrived | LinkLost | None) -> None:
        """Add one that has not come over the wire; from any thread."""
        super().put(arrived)
        os.eventfd_write(self._wake, 1)

    def get(self, timeout: float | None = None) -> Arrived | LinkLost | None:
        """The next, waiting for it; from one thread, after `start`.

        Raises:
            queue.Empty: none came within `timeout` seconds.
        """
        if not self.empty():
            return super().get()
        self._wanted = True
        os.eventfd_write(self._wake, 1)
        self._lent.acquire()
        try:
            until = time.monotonic() + timeout if timeout is not None else None
            while self.empty() and (until is None or time.monotonic() < until):
                left = None if until is None else max(0, ceil(1000 * (until - time.monotonic())))
                if arrived := self._receive(left):
                    return arrived
        finally:
            self._wanted = False
            self._returned.release()
        return super().get(timeout=0)

    def _run(self) -> None:
        try:
            while True:
                if arrived := self._receive(None):
                    super().put(arrived)
                if self._wanted:
                    self._lent.release()
                    self._returned.acquire()
        except zmq.ContextTerminated:
            self.receiver.close()

    def _receive(self, milliseconds: int | None) -> Arrived | LinkLost | None:
        """Wait for something to happen and take a message that has come; from whoever has the socket."""
        happened = [what for what, _ in self._poller.poll(milliseconds)]
        if self._wake in happened:
            os.eventfd_read(self._wake)
        if self.receiver.socket in happened and (arrived := self.receiver.receive()):
            return arrived
        if self.receiver.monitor in happened and self.receiver.lost_peer():
            return LinkLost()
        return None

    def abandon(self) -> None:
        """Close what was never started; a started one closes itself when the context is terminated."""
        if not self._thread.is_alive():
            self.receiver.close()


class Outbox:
    """The PUSH socket to the next node. Nothing is queued for a peer that is not there. Use from one thread.

    Raises:
        AddressError: an address that nothing can be sent to.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, keys: Keys | None) -> None:
        self.context = context
        self.keys = keys
        self.address = address
        self.socket = self._connect()

    def _connect(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self.context.socket(zmq.PUSH)
        configure(socket)
        if self.keys is not None:
            self.keys.connect(socket)
        socket.immediate = True
        socket.reconnect_ivl = 50
        socket.reconnect_ivl_max = 500
        socket.sndhwm = QUEUE_LIMIT
        try:
            socket.connect(self.address)
        except zmq.ZMQError as error:
            socket.close(0)
            raise AddressError(f"cannot send to {self.address}: {error.strerror or error}") from None
        return socket

    def point_to(self, address: str) -> None:
        """From now on send there; what the former peer has not taken yet is forgotten."""
        if address != self.address:
            self.socket.close(0)
            self.address = address
            self.socket = self._connect()

    def wait(self, milliseconds: int) -> bool:
        """Whether the next node can take a message within that time."""
        return bool(self.socket.poll(milliseconds, zmq.POLLOUT))

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Hand a message to the socket; False if the next node is not there or takes no more."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Close from the thread that uses it; what was handed over in the last moments is still sent."""
        self.socket.close(200)
