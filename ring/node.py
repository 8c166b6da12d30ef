"""The loop of one stage: take a message, run the layers, send it on."""

from __future__ import annotations

import logging
import os
import queue
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor

from ring import __version__
from ring.stage.model import StageModel
from ring.stage.sampling import sample
from ring.wire.frames import NAMES, Arrived, encode
from ring.wire.links import Outbox
from ring.wire.messages import (
    PROTOCOL,
    Fault,
    Forward,
    Health,
    Hello,
    Hop,
    LinkDown,
    Pulse,
    Release,
    RingMessage,
    Sampled,
    StageInfo,
)
from weights_tools.shard import Manifest

log = logging.getLogger("ring")

PATIENCE_S = 2.0


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
        arrivals: messages from the predecessor (or, for stage 0, from the head); None ends the loop.
        outbox: the link to the next node.
        refused: how many messages this node has refused so far.
        say: prints a line for whoever started the node.
    """

    def __init__(
        self,
        stage: StageModel,
        info: StageInfo,
        arrivals: queue.SimpleQueue[Arrived | None],
        outbox: Outbox,
        refused: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        self.stage = stage
        self.info = info
        self.arrivals = arrivals
        self.outbox = outbox
        self.refused = refused
        self.say = say
        self.epoch = -1
        self.stale = 0
        self._blocked = 0.0  # since when the next node takes nothing, and whether that was said
        self._complained = False
        self._process = psutil.Process()
        self._input_dtype = "int64" if info.stage == 0 else info.dtype

    def run(self) -> None:
        """Handle messages until None arrives."""
        while (arrived := self._next()) is not None:
            self.handle(arrived)

    def _next(self) -> Arrived | None:
        """The next message, saying once in a while what is missing if none has ever come."""
        if self.epoch < 0 and self.info.stage > 0:
            try:
                return self.arrivals.get(timeout=PATIENCE_S)
            except queue.Empty:
                self.say(f"waiting for the node before it to send to {self.info.listen}")
        return self.arrivals.get()

    def handle(self, arrived: Arrived) -> None:
        """Handle one message; what belongs to another epoch is dropped and counted."""
        message = arrived.message
        if isinstance(message, Hello):
            self._hello(message)
        elif isinstance(message, LinkDown):
            if message.epoch == 0 and self.epoch >= 0:
                self.say("the node before it is gone; waiting for it to return")
            self._send(LinkDown(epoch=max(self.epoch, 0), stage=message.stage))
        elif message.epoch != self.epoch:
            self.stale += 1
        elif isinstance(message, Forward):
            self._forward(message, arrived)
        elif isinstance(message, Release):
            self.stage.cache.release(message.slots)
            self._send(message)
        elif isinstance(message, Pulse):
            resident = self._process.memory_info().rss
            health = Health(self.info.stage, resident, self.stage.cache.reserved, self.refused() + self.stale)
            message.stages.append(health)
            self._send(message)
        else:  # Sampled, Fault: on their way to the head
            self._send(message)

    def _hello(self, hello: Hello) -> None:
        if hello.problem is None and hello.lap == 1:
            hello.problem = mismatch(hello, self.info)
            if hello.problem is None:
                hello.stages.append(self.info)
                self.stage.cache.clear()
                self.epoch = hello.epoch
            else:
                self.say(hello.problem)
        elif hello.problem is None and hello.epoch == self.epoch and self.info.stage > 0:
            self.say(f"the ring has formed: {len(hello.stages)} stages")
        self._send(hello)

    def _forward(self, message: Forward, arrived: Arrived) -> None:
        assert arrived.tensor is not None
        hop = Hop(self.info.stage, arrived.received, time.monotonic_ns(), 0, 0, arrived.bytes)
        try:
            self._check_input(arrived.tensor)
            output = self.stage.forward(arrived.tensor, message.runs)
            samplings = [run.sampling for run in message.runs if run.sampling is not None for _ in run.answered]
            tokens: list[int] = []
            if self.info.stage == self.info.stages - 1 and samplings:
                positions = [position for run in message.runs for position in run.answered]
                tokens = sample(output, samplings, positions)
        except Exception as error:  # one microbatch's fault must not take the node down
            log.warning("microbatch %d failed: %s", message.microbatch, error)
            cause = f"{type(error).__name__}: {error}"[:4000]
            self._send(Fault(self.epoch, message.microbatch, self.info.stage, cause))
            return
        hop.finished = time.monotonic_ns()
        message.hops.append(hop)
        if self.info.stage == self.info.stages - 1:
            self._send(Sampled(self.epoch, message.microbatch, tokens, message.hops))
        else:
            message.dtype, message.shape = NAMES[output.dtype], list(output.shape)  # type: ignore[assignment]
            self._send(message, output)

    def _check_input(self, tensor: Tensor) -> None:
        """Raises ValueError unless the tensor is this stage's input: token ids, or hidden states of the model's width."""
        if self.info.stage == 0:
            if tensor.dtype != torch.int64 or tensor.dim() != 1:
                raise ValueError("stage 0 takes int64 token ids")
            if int(tensor.min()) < 0 or int(tensor.max()) >= self.stage.vocabulary:
                raise ValueError(f"a token id outside the vocabulary of {self.stage.vocabulary}")
        elif tensor.dtype != self.stage.dtype or tensor.dim() != 2 or tensor.shape[1] != self.stage.hidden_size:
            raise ValueError(f"hidden states of shape {tuple(tensor.shape)} do not fit this model")

    def _send(self, message: RingMessage, tensor: Tensor | None = None) -> None:
        """Send on, waiting for the next node as long as it takes; a Hello gives way to a newer one."""
        if isinstance(message, Forward | Sampled):
            message.hops[-1].sent = time.monotonic_ns()
        frames = encode(message, tensor)
        while not self.outbox.send(frames):
            self._blocked = self._blocked or time.monotonic()
            if not self._complained and time.monotonic() - self._blocked > PATIENCE_S:
                self._complained = True
                self.say(f"waiting for the next node at {self.outbox.address}")
            self.outbox.wait(100)
            if isinstance(message, Hello) and not self.arrivals.empty():
                return
        self._blocked, self._complained = 0.0, False


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
