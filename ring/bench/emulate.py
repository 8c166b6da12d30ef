"""Stages that take a fixed time instead of computing, so that a ring can be measured that has more machines than this one.

Everything else is real: head, scheduler, wire, processes. A stage's output has the right shape; the last one's logits
name a token that follows from its position, so that what is generated is known beforehand.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import zmq
from torch import Tensor
from transformers import AutoConfig

import ring.start
from ring.stage.kv import KVCache
from ring.stage.model import DTYPES, StageModel, sampled_rows
from ring.wire.frames import Buffer
from ring.wire.keys import Keys
from ring.wire.links import Outbox
from ring.wire.messages import Run
from weights_tools.shard import read_manifest


class EmulatedStage:
    """Has the interface of a StageModel; `forward` sleeps `step_s`, or `token_s` for each token if that is longer.

    What is generated repeats after `period` tokens, or after as many as the vocabulary has.
    """

    def __init__(self, folder: Path, step_s: float, token_s: float, period: int | None) -> None:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        self.manifest = read_manifest(folder)
        self.step_s, self.token_s = step_s, token_s
        self.dtype = DTYPES[self.manifest.dtype]
        self.hidden_size: int = config.hidden_size
        self.vocabulary: int = config.vocab_size
        self.period = period or self.vocabulary - 1
        self.cache = KVCache(0, 1, torch.device("cpu"))

    def forward(self, inputs: Tensor, runs: list[Run]) -> Tensor:
        """Sleep as long as the microbatch takes; returns hidden states or logits of the right shape."""
        until = time.monotonic() + max(self.step_s, self.token_s * len(inputs))
        self.cache.begin(runs)
        self.cache.commit()
        if self.manifest.is_last:
            output = torch.zeros(len(sampled_rows(runs)), self.vocabulary)
            for row, at in zip(output, answered_positions(runs), strict=True):
                row[1 + at % self.period] = 1.0
        else:
            output = torch.zeros(len(inputs), self.hidden_size, dtype=self.dtype)
        time.sleep(max(0.0, until - time.monotonic()))
        return output

    def measure_token_bytes(self) -> int:
        """Whatever fits every experiment."""
        return 1024


def answered_positions(runs: list[Run]) -> list[int]:
    """The positions of the tokens that are sampled."""
    return [position for run in runs for position in run.answered]


class DelayedOutbox:
    """An Outbox whose messages take `delay_s` longer, any number of them at a time: a long wire, not a narrow one."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, keys: Keys | None, delay_s: float) -> None:
        self.address = address
        self._delay_s = delay_s
        self._wire: queue.SimpleQueue[tuple[float, Sequence[Buffer]] | None] = queue.SimpleQueue()
        self._outbox = Outbox(context, address, keys)  # a socket may move to another thread once
        self._thread = threading.Thread(target=self._carry, name="wire", daemon=True)
        self._thread.start()

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Always takes a message."""
        self._wire.put((time.monotonic() + self._delay_s, frames))
        return True

    def wait(self, milliseconds: int) -> bool:
        """Never needed."""
        return True

    def point_to(self, address: str) -> None:
        """Nothing to do: experiments have no spares."""

    def _carry(self) -> None:
        try:
            while (item := self._wire.get()) is not None:
                due, frames = item
                time.sleep(max(0.0, due - time.monotonic()))
                while not self._outbox.send(frames):
                    self._outbox.wait(100)
        except zmq.ContextTerminated:
            pass
        finally:
            self._outbox.close()

    def close(self) -> None:
        """Let the thread end, which closes the socket."""
        self._wire.put(None)
        self._thread.join()


def install(step_s: float, token_s: float, delay_s: float, period: int | None) -> None:
    """Give every node of this process, from now on, an emulated stage and link."""
    module: Any = ring.start
    module.load_stage = lambda folder, *_: EmulatedStage(folder, step_s, token_s, period)
    if delay_s:
        module.Outbox = lambda context, address, keys: DelayedOutbox(context, address, keys, delay_s)


def slow_down(factor: float) -> None:
    """Make this process's stage take `factor` times as long, as on a slower machine: it sleeps, others may compute."""
    forward = StageModel.forward

    def slower(self: StageModel, inputs: Tensor, runs: list[Run]) -> Tensor:
        started = time.monotonic()
        output = forward(self, inputs, runs)
        time.sleep((factor - 1) * (time.monotonic() - started))
        return output

    model: Any = StageModel
    model.forward = slower
