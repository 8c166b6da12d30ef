"""Damaged, truncated and replayed messages against every port of a live ring: refused, counted, and nothing else."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import torch
import zmq

from ring.sync import SyncRingClient
from ring.wire.clients import Cancel, Drain, Generate, GetStatus, Status, Watch
from ring.wire.frames import Buffer, encode
from ring.wire.messages import Fault, Forward, Hello, Hop, LinkDown, Pulse, Release, Run, Sampled, Sampling, Standby
from tests.e2e.harness import NodeRing
from tests.e2e.test_kill import at_rest, until
from tests.head.test_forming import info

MUTANTS = 400


@pytest.fixture(scope="module")
def ring(llama: Path) -> Iterator[NodeRing]:
    with NodeRing(llama / "shards-3", 3) as ring:
        yield ring


def captured(status: Status) -> list[list[Buffer]]:
    """Messages as they travelled in this ring a moment ago: right epoch, and a sender of before a restart."""
    epoch, old, hops = status.epoch, 12345, [Hop(0, 1, 2, 3, 4, 5)]
    runs = [Run(0, 0, 2, 8, Sampling())]
    return [
        encode(Forward(epoch, 0, runs, "float32", [2, 64], hops, old), torch.ones(2, 64)),
        encode(Sampled(epoch, 0, [3], hops, sender=old)),
        encode(Fault(epoch, 0, 1, "out of memory", runs, old)),
        encode(Release(epoch, [0, 1, 2], old)),
        encode(Pulse(epoch, [], old)),
        encode(LinkDown(epoch, 1, old)),
        encode(Hello(1, epoch - 1, status.stages[0].info.fingerprint)),
        encode(Standby(info(1), old)),
    ]


ASKED = [Generate(1, token_ids=[1, 2, 3], max_tokens=2), GetStatus(2), Cancel(1), Watch(3), Watch(3, False), Drain(4, False)]
REQUESTS = [msgspec.msgpack.encode(message) for message in ASKED]


def mutate(frames: list[Buffer], chance: random.Random) -> list[bytes]:
    """The same, with something wrong with it."""
    raw = [bytearray(frame) for frame in frames]
    victim = chance.choice(raw)
    match chance.randrange(5):
        case 0 if victim:
            victim[chance.randrange(len(victim))] ^= 1 << chance.randrange(8)
        case 1:
            del victim[chance.randrange(len(victim) + 1) :]
        case 2:
            victim += chance.randbytes(chance.randrange(1, 50))
        case 3:
            raw.append(bytearray(chance.randbytes(chance.randrange(100))))
        case _:
            chance.shuffle(raw)
    return [bytes(frame) for frame in raw]


def send_all(address: str, kind: int, messages: list[list[bytes]]) -> None:
    """Deliver messages over ZMTP, as a program of ours would."""
    context: zmq.Context[Any] = zmq.Context()
    with context.socket(kind) as stranger:
        stranger.linger = 2000
        stranger.connect(address)
        for frames in messages:
            stranger.send_multipart(frames)
    context.term()


@pytest.mark.parametrize("port", [0, 1, 2, "clients"])
def test_mutants_change_nothing(ring: NodeRing, port: int | str) -> None:
    chance = random.Random(f"{port}")
    address = ring.clients if port == "clients" else ring.address(int(port))
    with SyncRingClient(ring.clients) as client:
        before, answer = client.status(), client.complete(token_ids=[5, 6, 7], max_tokens=8).token_ids
        if port == "clients":
            corpus: list[list[Buffer]] = [[request] for request in REQUESTS]
        else:
            corpus = captured(before)
        replayed = [[bytes(frame) for frame in frames] for frames in corpus]
        mutants = [mutate(chance.choice(corpus), chance) for _ in range(MUTANTS)]
        send_all(address, zmq.DEALER if port == "clients" else zmq.PUSH, replayed + mutants)
        with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)) as raw:
            raw.sendall(b"".join(frame for frames in mutants for frame in frames))
        assert client.complete(token_ids=[5, 6, 7], max_tokens=8).token_ids == answer
        status = asyncio.run(asyncio.wait_for(until(ring, at_rest), 30))
    assert status.epoch == before.epoch, "the ring did not even have to form again"
    assert [stage.info.pid for stage in status.stages] == [node.pid for _, node in sorted(ring.nodes.items())]
    assert "Traceback" not in ring.all_logs()
