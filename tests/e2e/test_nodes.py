"""Nodes started wrongly, stopped at any moment, killed and restarted."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ring.client import RingClient
from tests.e2e.harness import NodeRing
from tests.models import generate, make_checkpoint
from weights_tools.split import split


async def wait_for_line(ring: NodeRing, stage: int, words: str) -> None:
    """Until a node has printed these words."""
    async with asyncio.timeout(60):
        while words not in ring.log(stage):
            await asyncio.sleep(0.02)


def test_nodes_say_what_they_wait_for_and_order_does_not_matter(llama: Path) -> None:
    ring = NodeRing(llama / "shards-3", 3)
    try:
        ring.start(0)
        asyncio.run(wait_for_line(ring, 0, f"waiting for the next node at {ring.address(1)}"))
        ring.start(1)
        asyncio.run(wait_for_line(ring, 1, "stage 1 of 3 is ready"))
        asyncio.run(wait_for_line(ring, 1, f"waiting for the next node at {ring.address(2)}"))
        ring.start(2)
        asyncio.run(ring.wait_for("ready"))
        assert ring.log(2).count("stage 2 of 3 is ready") == 1
    finally:
        ring.stop()


def test_a_node_in_the_wrong_place_is_named_and_can_be_replaced(llama: Path) -> None:
    ring = NodeRing(llama / "shards-3", 3)
    try:
        ring.start(0)
        wrong = ring.start(1, shard=llama / "shards-3" / "stage-2")
        ring.start(2)
        status = asyncio.run(ring.wait_for("mismatch"))
        assert f"the node at {ring.address(1)}" in status.detail
        assert "reached as stage 1" in status.detail
        asyncio.run(wait_for_line(ring, 1, "reached as stage 1"))
        wrong.send_signal(signal.SIGTERM)
        assert wrong.wait(20) == 0
        ring.start(1)
        asyncio.run(ring.wait_for("ready"))
    finally:
        ring.stop()


def test_two_models_do_not_mix(llama: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "other", seed=1)
    split(str(tmp_path / "other"), tmp_path / "shards", stages=3)
    ring = NodeRing(llama / "shards-3", 3)
    try:
        for stage in range(3):
            ring.start(stage, shard=(tmp_path / "shards" if stage == 2 else llama / "shards-3") / f"stage-{stage}")
        status = asyncio.run(ring.wait_for("mismatch"))
        assert f"the node at {ring.address(2)}" in status.detail
        assert "another model" in status.detail
    finally:
        ring.stop()


def test_a_ring_that_closes_too_early_is_named(llama: Path) -> None:
    ring = NodeRing(llama / "shards-3", 3)
    try:
        ring.start(0)
        ring.start(1, next_stage=0)
        status = asyncio.run(ring.wait_for("mismatch"))
        assert f"--next of the node at {ring.address(1)}" in status.detail
    finally:
        ring.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["waiting", "formed", "computing"])
def test_stopping_is_clean_at_every_moment(llama: Path, number: signal.Signals, moment: str) -> None:
    ring = NodeRing(llama / "shards-3", 3)
    try:
        ring.start(0)
        ring.start(1)
        if moment == "waiting":
            for stage in (0, 1):
                asyncio.run(wait_for_line(ring, stage, "is ready"))
        else:
            ring.start(2)
            asyncio.run(ring.wait_for("ready"))
        if moment == "computing":
            asyncio.run(interrupt_a_stream(ring, number))
    finally:
        codes = ring.stop(number)
    assert set(codes.values()) == {0}, ring.all_logs()
    assert "Traceback" not in ring.all_logs()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_while_the_program_is_still_being_loaded(llama: Path, number: signal.Signals) -> None:
    ring = NodeRing(llama / "shards-3", 3)
    command = [sys.executable, "-m", "ring", *ring.command(0)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as node:
        while "libtorch" not in Path(f"/proc/{node.pid}/maps").read_text():
            assert node.poll() is None
        node.send_signal(number)
        output, _ = node.communicate(timeout=60)
    assert node.returncode in {0, 130, 128 + number, -number}
    assert "Traceback" not in output


async def interrupt_a_stream(ring: NodeRing, number: signal.Signals) -> None:
    async with RingClient(ring.clients) as client:
        async for event in client.generate(token_ids=[1, 2, 3], max_tokens=500):
            if event.token_ids:
                ring.nodes[1].send_signal(number)
                break


@pytest.mark.parametrize("stage", [1, 2])
def test_a_killed_node_that_returns_continues_the_streams(llama: Path, stage: int) -> None:
    prompts = [[1, 2, 3], list(range(1, 160)), [9, 8]]
    expected = generate(llama / "checkpoint", prompts, 120)

    async def stream(client: RingClient, prompt: list[int], started: asyncio.Event) -> list[int]:
        tokens: list[int] = []
        async for event in client.generate(token_ids=prompt, max_tokens=120):
            tokens += event.token_ids
            if len(tokens) >= 10:
                started.set()
        return tokens

    async def run(ring: NodeRing) -> list[list[int]]:
        async with RingClient(ring.clients) as client:
            events = [asyncio.Event() for _ in prompts]
            streams = [asyncio.create_task(stream(client, p, e)) for p, e in zip(prompts, events, strict=True)]
            await asyncio.gather(*(event.wait() for event in events))
            ring.nodes[stage].kill()
            while (await client.status()).state == "ready":
                await asyncio.sleep(0.02)
            ring.start(stage)
            return list(await asyncio.gather(*streams))

    with NodeRing(llama / "shards-3", 3) as ring:
        assert asyncio.run(asyncio.wait_for(run(ring), 60)) == expected


def test_bad_starts_are_one_sentence(llama: Path, tmp_path: Path) -> None:
    shards = llama / "shards-3"
    damaged = tmp_path / "stage-1"
    damaged.mkdir()
    for file in (shards / "stage-1").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    raw = bytearray((damaged / "model.safetensors").read_bytes())
    raw[-100] ^= 1
    (damaged / "model.safetensors").write_bytes(raw)
    cases = {tmp_path / "nothing": "is not a shard", damaged: "is damaged"}
    for shard, words in cases.items():
        ring = NodeRing(shards, 3)
        node = ring.start(1, shard=shard)
        assert node.wait(60) == 1
        assert words in ring.log(1)
        assert ring.log(1).count("\n") == 1, ring.log(1)
    with NodeRing(llama / "shards-1", 1) as ring:
        second = NodeRing(llama / "shards-1", 1)
        second.ports, second.clients = ring.ports, ring.clients
        assert second.start(0).wait(60) == 1
        assert f"cannot listen on {ring.address(0)}" in second.log(0)
        assert second.log(0).count("\n") == 1
