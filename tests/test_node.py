"""The loop of a stage: what it refuses, and how a fault in the middle of the ring stays with those it hit."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from ring.node import StageLoop, describe
from ring.stage.load import load_stage
from ring.stage.model import StageModel
from ring.wire.frames import Arrived, Buffer, decode
from ring.wire.links import Arrivals
from ring.wire.messages import PROTOCOL, Fault, Forward, Hello, Release, RingMessage, Run, Sampled, Sampling
from tests.models import make_checkpoint
from weights_tools.shard import read_manifest
from weights_tools.split import split

GREEDY = Sampling()


@dataclass
class FakeOutbox:
    """Keeps what is sent."""

    address: str = "tcp://next"
    sent: list[Arrived] = field(default_factory=list)

    def send(self, frames: list[Buffer]) -> bool:
        self.sent.append(decode([bytes(frame) for frame in frames], time.monotonic_ns()))
        return True

    def point_to(self, address: str) -> None:
        self.address = address


@dataclass
class FakeReceiver:
    """A receiver that nothing arrives at."""

    refused: int = 0
    predecessor: int = 0


class Pipeline:
    """Three stages in one process; `send` takes a message all the way."""

    def __init__(self, shards: Path) -> None:
        self.loops = []
        for number in range(3):
            stage, manifest = load_stage(shards / f"stage-{number}"), read_manifest(shards / f"stage-{number}")
            info = describe(manifest, f"tcp://{number}", 1000, 1)
            loop = StageLoop(stage, info, Arrivals(), FakeOutbox(), FakeReceiver(), print)  # type: ignore[arg-type]
            self.loops.append(loop)
        self.fingerprint = self.loops[0].info.fingerprint

    def send(self, message: RingMessage, tensor: Tensor | None = None, first: int = 0) -> RingMessage | None:
        arrived = Arrived(msgspec.convert(msgspec.to_builtins(message), type(message)), tensor, time.monotonic_ns(), 0)
        for loop in self.loops[first:]:
            outbox = loop.outbox
            assert isinstance(outbox, FakeOutbox)
            outbox.sent.clear()
            loop.handle(arrived)
            if not outbox.sent:
                return None
            (arrived,) = outbox.sent
        return arrived.message

    def form(self, epoch: int = 1, **fields: object) -> Hello:
        hello = self.send(Hello(PROTOCOL, epoch, self.fingerprint, **fields))  # type: ignore[arg-type]
        assert isinstance(hello, Hello)
        return hello

    def forward(self, number: int, parts: list[tuple[Run, list[int]]], epoch: int = 1) -> RingMessage | None:
        tokens = torch.tensor([token for _, ids in parts for token in ids])
        return self.send(Forward(epoch, number, [run for run, _ in parts], "int64", [len(tokens)]), tokens)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("node")
    make_checkpoint(folder / "checkpoint")
    split(str(folder / "checkpoint"), folder / "shards", stages=3)
    return folder / "shards"


@pytest.fixture
def pipeline(shards: Path) -> Pipeline:
    pipeline = Pipeline(shards)
    assert len(pipeline.form().stages) == 3
    return pipeline


def tokens(message: RingMessage | None) -> list[int | None]:
    assert isinstance(message, Sampled)
    return message.tokens


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_fault_stays_with_those_it_hit(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    """Slot 1 fails in its first chunk; its second one is on its way already, beside a token of the healthy slot 0."""
    prompt = list(range(1, 20))
    healthy = [tokens(pipeline.forward(0, [(Run(0, 0, 19, 40, GREEDY), prompt)]))[0]]
    for step in range(1, 4):
        healthy += tokens(pipeline.forward(step, [(Run(0, 18 + step, 1, 40, GREEDY), [healthy[-1] or 0])]))
    pipeline.form(epoch=2)
    again = tokens(pipeline.forward(0, [(Run(0, 0, 19, 40, GREEDY), prompt)], epoch=2))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.loops[stage].stage, "forward", out_of_memory)
        fault = pipeline.forward(1, [(Run(1, 0, 4, 9), [5, 6, 7, 8])], epoch=2)
    assert isinstance(fault, Fault)
    assert (fault.stage, fault.microbatch, fault.cause) == (stage, 1, "MemoryError: no memory for this")
    mixed = [(Run(0, 19, 1, 40, GREEDY), [again[0] or 0]), (Run(1, 4, 3, 9, GREEDY), [9, 10, 11])]
    again += tokens(pipeline.forward(2, mixed, epoch=2))[:1]
    pipeline.send(Release(2, [1]))
    for step in range(2, 4):
        again += tokens(pipeline.forward(1 + step, [(Run(0, 18 + step, 1, 40, GREEDY), [again[-1] or 0])], epoch=2))
    assert again == healthy
    assert all(loop.stage.cache.reserved == 40 for loop in pipeline.loops)


def out_of_memory(*_: object) -> Tensor:
    raise MemoryError("no memory for this")


def test_a_duplicate_is_dropped(pipeline: Pipeline) -> None:
    run = [(Run(0, 0, 3, 9, GREEDY), [1, 2, 3])]
    assert pipeline.forward(0, run) is not None
    assert pipeline.forward(0, run) is None
    assert pipeline.loops[0].stale == 1


def test_another_epoch_or_sender_is_dropped(pipeline: Pipeline) -> None:
    before = pipeline.loops[0].info.incarnation
    assert pipeline.send(Release(1, [0], sender=before), first=1) is not None
    assert pipeline.send(Release(0, [0], sender=before), first=1) is None
    assert pipeline.send(Release(2, [0], sender=before), first=1) is None
    assert pipeline.send(Release(1, [0], sender=before + 1), first=1) is None
    assert pipeline.loops[1].stale == 3


def test_an_old_hello_changes_nothing_and_learns_the_newest_epoch(pipeline: Pipeline) -> None:
    pipeline.form(epoch=9)
    old = pipeline.form(epoch=5)
    assert (old.floor, old.stages) == (9, [])
    assert [loop.epoch for loop in pipeline.loops] == [9, 9, 9]


def test_a_hello_is_not_taken_twice_once_the_ring_runs(pipeline: Pipeline) -> None:
    assert pipeline.forward(0, [(Run(0, 0, 3, 9, GREEDY), [1, 2, 3])]) is not None
    assert pipeline.send(Hello(PROTOCOL, 1, pipeline.fingerprint)) is None
    assert pipeline.loops[0].stage.cache.reserved == 9


def test_routes_turn_the_node_before_to_the_spare(pipeline: Pipeline) -> None:
    pipeline.form(epoch=2, routes={2: "tcp://spare"})
    assert [loop.outbox.address for loop in pipeline.loops] == ["tcp://next", "tcp://spare", "tcp://next"]
    pipeline.form(epoch=3)
    assert [loop.outbox.address for loop in pipeline.loops] == ["tcp://next"] * 3


@pytest.mark.parametrize("tensor", [torch.zeros(2, 7), torch.zeros(2, 64, dtype=torch.float16)])
def test_hidden_states_that_do_not_fit_are_a_fault(pipeline: Pipeline, tensor: Tensor) -> None:
    sender = pipeline.loops[0].info.incarnation
    dtype = str(tensor.dtype).removeprefix("torch.")
    forward = Forward(1, 0, [Run(0, 0, 2, 4)], dtype, list(tensor.shape), sender=sender)  # type: ignore[arg-type]
    fault = pipeline.send(forward, tensor, first=1)
    assert isinstance(fault, Fault) and "do not fit this model" in fault.cause


def test_a_token_outside_the_vocabulary_is_a_fault(pipeline: Pipeline) -> None:
    fault = pipeline.forward(0, [(Run(0, 0, 2, 4), [1, 300])])
    assert isinstance(fault, Fault) and "outside the vocabulary" in fault.cause
    assert isinstance(pipeline.loops[0].stage, StageModel)
