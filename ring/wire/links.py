"""The sockets between nodes: an Inbox that receives while the stage computes, and an Outbox to the next node."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence

import zmq
from zmq.utils.monitor import recv_monitor_message

from ring.wire.frames import Arrived, Buffer, WireError, decode
from ring.wire.messages import LinkDown
from ring.wire.sockets import AddressError, bind, configure

log = logging.getLogger("ring")

QUEUE_LIMIT = 256


class RingReceiver:
    """The PULL socket at which a node's predecessor delivers, and what it thinks of arrivals.

    Bytes that are no message are counted in `refused` and dropped. Use from one thread.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.socket = bind(context, zmq.PULL, address)
        self.socket.rcvhwm = QUEUE_LIMIT
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.refused = 0
        self._predecessor = -1  # the connection that ring messages come by; a stranger's coming and going means nothing

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
                self._predecessor = int(frames[0].get(zmq.SRCFD))
                return arrived
            except WireError as error:
                self.refused += 1
                if self.refused & (self.refused - 1) == 0:  # 1st, 2nd, 4th, 8th: a flood must not flood the log
                    log.warning("refused %d message(s) that are not this ring's: %s", self.refused, error)

    def lost_peer(self) -> bool:
        """Whether the connection by which ring messages came has ended since the last call."""
        lost = False
        while self.monitor.poll(0):
            if recv_monitor_message(self.monitor)["value"] == self._predecessor:
                self._predecessor, lost = -1, True
        return lost

    def close(self) -> None:
        """Close from the thread that uses it."""
        self.monitor.close(0)
        self.socket.close(0)


class Inbox(threading.Thread):
    """Receives in a thread of its own, so that a message's arrival is stamped while the stage computes.

    Ends when the context is terminated.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, stage: int) -> None:
        super().__init__(name="inbox", daemon=True)
        self.receiver = RingReceiver(context, address)
        self.stage = stage
        self.arrivals: queue.SimpleQueue[Arrived | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Move messages from the socket to `arrivals`, and say when the predecessor is lost."""
        poller = zmq.Poller()
        poller.register(self.receiver.socket, zmq.POLLIN)
        poller.register(self.receiver.monitor, zmq.POLLIN)
        try:
            while True:
                poller.poll()
                while arrived := self.receiver.receive():
                    self.arrivals.put(arrived)
                if self.receiver.lost_peer():
                    self.arrivals.put(Arrived(LinkDown(epoch=0, stage=self.stage), None, time.monotonic_ns(), 0))
        except zmq.ContextTerminated:
            self.receiver.close()

    def abandon(self) -> None:
        """Close what was never started; a started one closes itself when the context is terminated."""
        if not self.is_alive():
            self.receiver.close()


class Outbox:
    """The PUSH socket to the next node. Nothing is queued for a peer that is not there. Use from one thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.address = address
        self.socket = context.socket(zmq.PUSH)
        configure(self.socket)
        self.socket.immediate = True
        self.socket.reconnect_ivl = 100
        self.socket.reconnect_ivl_max = 1000
        self.socket.sndhwm = QUEUE_LIMIT
        try:
            self.socket.connect(address)
        except zmq.ZMQError as error:
            self.socket.close(0)
            raise AddressError(f"cannot send to {address}: {error.strerror or error}") from None

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
