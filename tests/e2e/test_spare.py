"""Spares take over, and those that they replaced disturb nothing when they come back."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from ring.client import RingClient
from tests.e2e.harness import NodeRing
from tests.e2e.test_kill import check, stream, until
from tests.models import ragged_prompts


async def undisturbed(ring: NodeRing) -> list[list[int]]:
    async with RingClient(ring.clients) as client:
        return list(await asyncio.gather(*(stream(client, k) for k in range(8))))


@pytest.mark.parametrize("stage", [1, 2])
def test_a_spare_takes_over_and_gives_back(llama: Path, stage: int) -> None:
    with NodeRing(llama / "shards-3", 3) as ring:
        expected = asyncio.run(undisturbed(ring))
        spare = ring.start_spare(stage)
        original = ring.nodes[stage]
        asyncio.run(until(ring, lambda status: status.spares == [stage]))

        async def stop_original(ring: NodeRing) -> None:
            original.send_signal(signal.SIGSTOP)

        asyncio.run(check(ring, expected, 8, "decode", stop_original))
        status = asyncio.run(until(ring, lambda status: status.state == "ready"))
        assert status.stages[stage].info.pid == spare.pid

        async def wake_original(ring: NodeRing) -> None:
            original.send_signal(signal.SIGCONT)

        # It goes on in an epoch that is over, into the inbox of the node after it.
        asyncio.run(check(ring, expected, 8, "decode", wake_original))

        async def kill_spare(ring: NodeRing) -> None:
            spare.send_signal(signal.SIGKILL)

        asyncio.run(check(ring, expected, 8, "decode", kill_spare))
        status = asyncio.run(until(ring, lambda status: status.state == "ready"))
        assert status.stages[stage].info.pid == original.pid
        del ring.nodes[100 + stage]


def test_stage_0_has_no_spare(llama: Path) -> None:
    ring = NodeRing(llama / "shards-3", 3)
    assert ring.start_spare(0).wait() == 1
    assert ring.log(100) == "error: stage 0 cannot have a spare, as clients know its address; start it again when it is lost\n"


def test_a_ring_that_never_had_the_stage_takes_its_spare(llama: Path) -> None:
    ring = NodeRing(llama / "shards-3", 3)
    try:
        spare = ring.start_spare(1)
        ring.start(2)
        ring.start(0)
        status = asyncio.run(ring.wait_for("ready"))
        assert status.stages[1].info.pid == spare.pid

        async def run() -> list[int]:
            async with RingClient(ring.clients) as client:
                return (await client.complete(token_ids=ragged_prompts(1, 20)[0], max_tokens=5)).token_ids

        assert len(asyncio.run(run())) == 5
    finally:
        ring.stop()
