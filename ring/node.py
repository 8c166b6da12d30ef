"""The loop of one stage: take a message, run the layers, send it on."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor

from ring import __version__
from ring.stage.model import StageModel
from ring.stage.sampling import logprobs, sample
from ring.wire.frames import NAMES, Arrived, encode
from ring.wire.links import Arrivals, LinkLost, Outbox, RingReceiver
from ring.wire.messages import (
    PROTOCOL,
    Fault,
    Forward,
    Health,
    Hello,
    Hop,
    LinkDown,
    LogprobRow,
    Pulse,
    Release,
    RingMessage,
    Sampled,
    StageInfo,
    Standby,
)
from weights_tools.shard import Manifest

log = logging.getLogger("ring")

PATIENCE_S = 2.0
ANNOUNCE_S = 1.0


def describe(manifest: Manifest, listen: str, kv_tokens: int, kv_token_bytes: int) -> StageInfo:
    """What this node says of itself in the Hello lap."""
    return StageInfo(
        stage=manifest.stage,
        stages=manifest.stages,
        first_layer=manifest.first_layer,
        end_layer=manifest.end_layer,
        layers=manifest.layers,
        fingerprint=manifest.fingerprint,
        dtype=manifest.dtype,
        host=socket.gethostname(),
        pid=os.getpid(),
        incarnation=secrets.randbits(63),
        # Processes of one machine read the same monotonic clock; the boot id tells machines (and reboots) apart.
        clock=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        version=__version__,
        listen=listen,
        shard_bytes=manifest.bytes,
        kv_tokens=kv_tokens,
        kv_token_bytes=kv_token_bytes,
        threads=torch.get_num_threads(),
    )


class StageLoop:
    """Handles the messages of one stage, in order, until told to stop.

    Args:
        stage: the model.
        info: what the Hello lap says of this node.
        arrivals: messages from the predecessor (or, for stage 0, from the head).
        outbox: the link to the next node.
        receiver: where the predecessor (on stage 0 the last stage) delivers.
        say: prints a line for whoever started the node.
        spare: announce this node to the head while it is not part of a ring.
    """

    def __init__(
        self,
        stage: StageModel,
        info: StageInfo,
        arrivals: Arrivals,
        outbox: Outbox,
        receiver: RingReceiver,
        say: Callable[[str], None],
        spare: bool = False,
    ) -> None:
        self.stage = stage
        self.info = info
        self.arrivals = arrivals
        self.outbox = outbox
        self.receiver = receiver
        self.say = say
        self.spare = spare
        self.epoch = -1
        self.stale = 0
        self.busy_since: float | None = None
        self.longest_s = 0.0
        self._stopping = False
        self._predecessor = 0  # the head, in this process
        self._last_microbatch = -1
        self._running = False
        self._next_address = outbox.address
        self._blocked = 0.0  # since when the next node takes nothing, and whether that was said
        self._complained = False
        self._process = psutil.Process()

    def blocked(self) -> str | None:
        """The next node's address, if it has taken nothing for a while."""
        return self.outbox.address if self._complained else None

    def stop(self) -> None:
        """End `run` soon, whatever it waits for; may be called from a signal handler."""
        self._stopping = True
        self.arrivals.put(None)

    def run(self) -> None:
        """Handle messages until None arrives."""
        while (arrived := self._next()) is not None:
            if isinstance(arrived, LinkLost):
                self._link_lost()
            else:
                self.handle(arrived)

    def _next(self) -> Arrived | LinkLost | None:
        """The next message; says once in a while what is missing if none has ever come, and announces a spare."""
        waited = 0.0
        while self.info.stage > 0 and (self.spare or self.epoch < 0):
            try:
                return self.arrivals.get(timeout=ANNOUNCE_S)
            except queue.Empty:
                waited += ANNOUNCE_S
            if self.spare and waited > ANNOUNCE_S:  # in a ring a pulse comes by every second
                self.outbox.send(encode(Standby(self.info, self.info.incarnation)))
            elif not self.spare and waited == PATIENCE_S:
                self.say(f"waiting for the node before it to send to {self.info.listen}")
        return self.arrivals.get()

    def _link_lost(self) -> None:
        if self.epoch >= 0:
            self.say("the node before it is gone; waiting for it to return")
            self._send(LinkDown(epoch=self.epoch, stage=self.info.stage))

    def handle(self, arrived: Arrived) -> None:
        """Handle one message; what is of another epoch or does not come from the node before is dropped and counted."""
        message = arrived.message
        if isinstance(message, Hello):
            self._hello(message)
        elif isinstance(message, Standby):
            self._send(message)
        elif message.epoch != self.epoch or message.sender != self._predecessor:
            self.stale += 1
        elif isinstance(message, Forward):
            self._forward(message, arrived)
        elif isinstance(message, Release):
            self.stage.cache.release(message.slots)
            self._send(message)
        elif isinstance(message, Pulse):
            self._running = True
            message.stages.append(self._health())
            self._send(message)
        elif isinstance(message, Fault):
            self.stage.cache.give_up(message.runs)
            self._send(message)
        else:  # Sampled, LinkDown: on their way to the head
            self._send(message)

    def _health(self) -> Health:
        return Health(
            stage=self.info.stage,
            resident_bytes=self._process.memory_info().rss,
            available_bytes=psutil.virtual_memory().available,
            kv_used=self.stage.cache.reserved,
            refused=self.receiver.refused + self.stale,
            time_ns=time.time_ns(),
        )

    def _hello(self, hello: Hello) -> None:
        if hello.lap == 1 and hello.problem is None:
            if hello.epoch == self.epoch and self._running:
                self.stale += 1  # the head sends no more of these once the ring runs
                return
            hello.floor = max(hello.floor, self.epoch, 0)
            if hello.epoch >= self.epoch:
                self._join(hello)
        elif hello.problem is None and hello.epoch == self.epoch and self.info.stage > 0:
            self.say(f"the ring has formed: {len(hello.stages)} stages")
        self._send(hello)

    def _join(self, hello: Hello) -> None:
        """Take the place that a Hello offers, or say in it why not."""
        hello.problem = mismatch(hello, self.info)
        if hello.problem is not None:
            self.say(hello.problem)
            return
        if hello.stages:
            self._predecessor = self.receiver.predecessor = hello.stages[-1].incarnation
        hello.stages.append(self.info)
        self.stage.cache.clear()
        self.epoch, self._last_microbatch, self._running = hello.epoch, -1, False
        self.outbox.point_to(hello.routes.get(self.info.stage + 1, self._next_address))

    def _forward(self, message: Forward, arrived: Arrived) -> None:
        if message.microbatch <= self._last_microbatch:
            self.stale += 1  # a duplicate
            return
        self._last_microbatch, self._running = message.microbatch, True
        assert arrived.tensor is not None
        hop = Hop(self.info.stage, arrived.received, time.monotonic_ns(), 0, 0, arrived.bytes)
        self.busy_since = hop.started / 1e9
        try:
            check_input(arrived.tensor, self.stage, self.info)
            output = self.stage.forward(arrived.tensor, message.runs)
            samplings = [run.sampling for run in message.runs if run.sampling is not None for _ in run.answered]
            tokens: list[int | None] = []
            likely: list[LogprobRow] = []
            if self.info.stage == self.info.stages - 1 and samplings:
                positions = [position for run in message.runs for position in run.answered]
                tokens = sample(output, samplings, positions)
                likely = logprobs(output, samplings, tokens)
        except Exception as error:  # one microbatch's fault must not take the node down
            log.warning("microbatch %d failed: %s", message.microbatch, error)
            self.stage.cache.give_up(message.runs)
            cause = f"{type(error).__name__}: {error}"[:4000]
            self._send(Fault(self.epoch, message.microbatch, self.info.stage, cause, message.runs))
            return
        finally:
            self.longest_s = max(self.longest_s, time.monotonic() - self.busy_since)
            self.busy_since = None
        hop.finished = time.monotonic_ns()
        message.hops.append(hop)
        if self.info.stage == self.info.stages - 1:
            self._send(Sampled(self.epoch, message.microbatch, tokens, message.hops, likely))
        else:
            message.dtype, message.shape = NAMES[output.dtype], list(output.shape)  # type: ignore[assignment]
            self._send(message, output)

    def _send(self, message: RingMessage, tensor: Tensor | None = None) -> None:
        """Send on, waiting for the next node as long as it takes, but not longer than the message is of use: a newer
        epoch makes it void, and a Hello is void as soon as anything else waits, as the head repeats it."""
        message.sender = self.info.incarnation
        if isinstance(message, Forward | Sampled):
            message.hops[-1].sent = time.monotonic_ns()
        frames = encode(message, tensor)
        while not self.outbox.send(frames):
            self._blocked = self._blocked or time.monotonic()
            if not self._complained and time.monotonic() - self._blocked > PATIENCE_S:
                self._complained = True
                self.say(f"waiting for the next node at {self.outbox.address}")
            self.outbox.wait(100)
            if self._stopping:
                return
            if self.arrivals.newest > self.epoch or (isinstance(message, Hello | Standby) and not self.arrivals.empty()):
                return
        self._blocked, self._complained = 0.0, False


def check_input(tensor: Tensor, stage: StageModel, info: StageInfo) -> None:
    """Raises ValueError unless the tensor is this stage's input: token ids, or hidden states of the model's width."""
    if info.stage == 0:
        if tensor.dtype != torch.int64 or tensor.dim() != 1:
            raise ValueError("stage 0 takes int64 token ids")
        if int(tensor.min()) < 0 or int(tensor.max()) >= stage.vocabulary:
            raise ValueError(f"a token id outside the vocabulary of {stage.vocabulary}")
    elif tensor.dtype != stage.dtype or tensor.dim() != 2 or tensor.shape[1] != stage.hidden_size:
        raise ValueError(f"hidden states of shape {tuple(tensor.shape)} do not fit this model")


def mismatch(hello: Hello, info: StageInfo) -> str | None:
    """Why this node cannot take the place that a Hello offers it, in a sentence that names it, or None.

    The place is the one after the stages that have added themselves so far.
    """
    me = f"the node at {info.listen} on {info.host} (stage {info.stage} of {info.stages})"
    if hello.protocol != PROTOCOL:
        return f"{me} speaks protocol {PROTOCOL}, the head {hello.protocol}; install the same version of ring on both"
    place = len(hello.stages)
    if info.fingerprint != hello.fingerprint:
        return f"{me} holds a shard of another model or dtype than the head; give it a shard of the same split"
    if info.stage != place:
        before = hello.stages[-1] if hello.stages else None
        who = f"the node at {before.listen} (stage {before.stage})" if before else "the head"
        return f"{me} was reached as stage {place}; correct --next of {who}"
    before = hello.stages[-1] if hello.stages else None
    if before and (info.stages != before.stages or info.first_layer != before.end_layer):
        return (
            f"{me} holds layers from {info.first_layer} but the stage before it ends at {before.end_layer}; split once, for all"
        )
    return None
