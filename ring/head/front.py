"""The head's side of the clients' socket: what they say, checked; what they are told, without ever waiting for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec
import zmq

from ring.wire.clients import (
    ClientMessage,
    Event,
    Failed,
    HeadMessage,
    Lap,
    LapHop,
    LapRun,
    Severity,
    client_decoder,
    encoder,
)


class Front:
    """The bound ROUTER socket of clients, and those of them that watch.

    `refused` counts bytes that are no message. `say` prints a line for whoever started the node.
    """

    def __init__(self, router: zmq.Socket[bytes], say: Callable[[str], None]) -> None:
        self.router = router
        self.say = say
        self.refused = 0
        self._watchers: dict[bytes, int] = {}

    def hear(self) -> Iterator[tuple[bytes, ClientMessage]]:
        """What has arrived, and from whom."""
        while True:
            try:
                client, *frames = self.router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = client_decoder.decode(frames[0]) if len(frames) == 1 else None
            except (msgspec.DecodeError, ValueError, RecursionError):
                message = None
            if message is None:
                self._refuse(client, frames)
            else:
                yield client, message

    def _refuse(self, client: bytes, frames: list[bytes]) -> None:
        """Answer what is not a message of this protocol, if it at least says which request it is."""
        try:
            raw = msgspec.msgpack.decode(frames[0])
            request = int(raw["request"])
            client_decoder.decode(frames[0])
        except msgspec.ValidationError as error:
            self.reply(client, Failed(request, "bad_request", f"the head refused the request: {error}"))
        except Exception:  # a stranger's bytes: there is nobody to answer
            self.refused += 1

    def reply(self, client: bytes, message: HeadMessage) -> bool:
        """Send to a client without waiting; False if it is gone or does not keep up."""
        try:
            self.router.send_multipart([client, encoder.encode(message)], zmq.NOBLOCK)
        except zmq.Again:
            return isinstance(message, Lap | Event)  # a slow watcher loses samples, nothing else
        except zmq.ZMQError:
            self._watchers.pop(client, None)
            return False
        return True

    def watch(self, client: bytes, request: int, on: bool) -> None:
        """From now on, or no longer, show this client all laps and events."""
        if on:
            self._watchers[client] = request
        else:
            self._watchers.pop(client, None)

    def announce(self, severity: Severity, stage: int, message: str) -> None:
        """Tell whoever started the node, and the watchers; `stage` is -1 where it concerns none."""
        self.say(message)
        self.tell(severity, stage, message)

    def tell(self, severity: Severity, stage: int, message: str) -> None:
        """Tell the watchers only."""
        for client, request in list(self._watchers.items()):
            self.reply(client, Event(request, time.time(), severity, stage, message))

    def show_lap(
        self, microbatch: int, epoch: int, started: int, duration: int, hops: list[LapHop], runs: list[LapRun]
    ) -> None:
        """Show the watchers a lap; arguments as in `Lap`."""
        for client, request in list(self._watchers.items()):
            self.reply(client, Lap(request, microbatch, epoch, started, duration, hops, runs))
