"""The kill matrix: whatever happens to whichever machine at whatever moment, every stream gets the tokens of an
undisturbed run, none lost and none twice, and no slot leaks.

In bfloat16, where the least other rounding changes tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ring.answers import RingError
from ring.client import RingClient
from ring.wire.clients import Event, Lap, Status
from tests.e2e.harness import NodeRing
from tests.e2e.proxy import Cable
from tests.models import ragged_prompts
from weights_tools.split import split

MAX_TOKENS = 100
PROMPTS = ragged_prompts(8, longest=400, seed=3)
GREEDY: dict[str, Any] = {"max_tokens": MAX_TOKENS}
SAMPLED: dict[str, Any] = {"max_tokens": MAX_TOKENS, "temperature": 0.8, "top_p": 0.95, "seed": 11}
REQUESTS = [(prompt, SAMPLED if k % 2 else GREEDY) for k, prompt in enumerate(PROMPTS)]

Strike = Callable[[NodeRing], Awaitable[None]]


@pytest.fixture(scope="module")
def cable() -> Iterator[Cable]:
    """The link from stage 0 to stage 1."""
    with Cable(0) as cable:
        yield cable


@pytest.fixture(scope="module")
def ring(llama: Path, cable: Cable, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRing]:
    shards = tmp_path_factory.mktemp("bfloat16") / "shards"
    split(str(llama / "checkpoint"), shards, stages=3, dtype="bfloat16")
    ring = NodeRing(shards, 3, "--token-budget", "32")
    cable.target = ring.ports[1]
    ring.next[0] = f"tcp://127.0.0.1:{cable.port}"
    with ring:
        yield ring


@pytest.fixture(scope="module")
def undisturbed(ring: NodeRing) -> list[list[int]]:
    async def run() -> list[list[int]]:
        async with RingClient(ring.clients) as client:
            return list(await asyncio.gather(*(stream(client, k) for k in range(len(REQUESTS)))))

    return asyncio.run(run())


async def stream(client: RingClient, number: int, progress: asyncio.Event | None = None) -> list[int]:
    """The tokens of one request; sets `progress` once some have come."""
    prompt, options = REQUESTS[number]
    tokens: list[int] = []
    async for event in client.generate(token_ids=prompt, **options):
        tokens += event.token_ids
        if progress is not None and len(tokens) > 5:
            progress.set()
    return tokens


async def until(ring: NodeRing, good: Callable[[Status], bool]) -> Status:
    """Ask the head until its status is as wanted, whatever happens to the head in between."""
    while True:
        with contextlib.suppress(RingError):
            async with RingClient(ring.clients, timeout=0.3) as client:
                while not good(status := await client.status()):
                    await asyncio.sleep(0.02)
                return status
        await asyncio.sleep(0.02)


async def disturb(ring: NodeRing, count: int, moment: str, strike: Strike) -> list[list[int]]:
    """Run `count` streams, strike at a moment, and return what they got in the end."""
    async with RingClient(ring.clients) as client:
        if moment == "idle":
            await strike(ring)
            await until(ring, lambda status: status.state == "ready")
            return list(await asyncio.gather(*(stream(client, k) for k in range(count))))
        seen = asyncio.Event()
        if moment == "prefill":
            laps = asyncio.create_task(first_lap(client, seen))
            await client.status()  # the head has the watch request by now
        streams = [asyncio.create_task(stream(client, k, seen if moment == "decode" else None)) for k in range(count)]
        await seen.wait()
        if moment == "prefill":
            laps.cancel()
        await strike(ring)
        return list(await asyncio.gather(*streams))


async def first_lap(client: RingClient, seen: asyncio.Event) -> None:
    """Set `seen` when the first prefill chunk has come round."""
    async for trace in client.traces():
        if isinstance(trace, Lap):
            seen.set()


def kill(stage: int, times: int = 1) -> Strike:
    """`kill -9` a node and start it again, again and again while the ring is still healing."""

    async def strike(ring: NodeRing) -> None:
        for _ in range(times):
            ring.nodes[stage].kill()
            lines = ring.log(stage).count("is ready")
            if stage > 0:
                await until(ring, lambda status: status.state != "ready")
            ring.start(stage)
            while ring.log(stage).count("is ready") == lines:
                await asyncio.sleep(0.01)

    return strike


async def check(ring: NodeRing, undisturbed: list[list[int]], count: int, moment: str, strike: Strike) -> None:
    """Strike, compare, and see that nothing is left behind."""
    async with asyncio.timeout(90):
        answers = await disturb(ring, count, moment, strike)
        assert answers == undisturbed[:count]
        await until(ring, at_rest)


def at_rest(status: Status) -> bool:
    """Whether the ring is whole, and nothing of any stream is left on any stage."""
    left = [status.running, status.waiting, status.kv_used, *(stage.kv_used for stage in status.stages)]
    return status.state == "ready" and not any(left)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("moment", ["idle", "prefill", "decode"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_node_is_killed(ring: NodeRing, undisturbed: list[list[int]], stage: int, moment: str, count: int) -> None:
    asyncio.run(check(ring, undisturbed, count, moment, kill(stage)))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_node_is_killed_again_while_the_ring_recovers(ring: NodeRing, undisturbed: list[list[int]], stage: int) -> None:
    asyncio.run(check(ring, undisturbed, 8, "decode", kill(stage, times=3)))


def test_two_nodes_are_killed_at_once(ring: NodeRing, undisturbed: list[list[int]]) -> None:
    async def strike(ring: NodeRing) -> None:
        ring.nodes[1].kill()
        ring.nodes[2].kill()
        ring.start(2)
        ring.start(1)

    asyncio.run(check(ring, undisturbed, 8, "decode", strike))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_node_is_stopped_and_wakes_up(ring: NodeRing, undisturbed: list[list[int]], stage: int) -> None:
    """SIGSTOP: the process is there, its connections are open, and it does nothing. When it wakes up, it goes on where
    it was, in an epoch that is over."""

    async def strike(ring: NodeRing) -> None:
        ring.nodes[stage].send_signal(signal.SIGSTOP)
        try:
            if stage > 0:
                await until(ring, lambda status: status.state != "ready")
            else:
                async with asyncio.timeout(30):
                    with contextlib.suppress(RingError):
                        async with RingClient(ring.clients, timeout=2.0) as client:
                            await client.status()
        finally:
            ring.nodes[stage].send_signal(signal.SIGCONT)

    asyncio.run(check(ring, undisturbed, 8, "decode", strike))


def test_a_link_is_cut_and_mended(ring: NodeRing, cable: Cable, undisturbed: list[list[int]]) -> None:
    async def strike(ring: NodeRing) -> None:
        cable.cut()
        status = await until(ring, lambda status: status.state != "ready")
        assert "stage 0" in status.detail
        cable.mend()

    asyncio.run(check(ring, undisturbed, 8, "decode", strike))


def test_events_and_notices_name_the_machine(ring: NodeRing) -> None:
    async def run() -> tuple[list[str], list[str]]:
        events: list[str] = []
        notices: list[str] = []
        async with RingClient(ring.clients) as client:

            async def watch() -> None:
                async for trace in client.traces():
                    if isinstance(trace, Event):
                        events.append(trace.message)

            watching = asyncio.create_task(watch())
            seen = asyncio.Event()

            async def read() -> None:
                async for event in client.generate(token_ids=[1, 2], max_tokens=200):
                    if event.token_ids:
                        seen.set()
                    if event.notice:
                        notices.append(event.notice)

            reading = asyncio.create_task(read())
            await seen.wait()
            await kill(1)(ring)
            await reading
            watching.cancel()
        return events, notices

    events, notices = asyncio.run(asyncio.wait_for(run(), 60))
    assert any("layers 2-3) is gone" in event for event in events)
    assert any("the ring has formed" in event for event in events)
    assert "layers 2-3) is gone or cut off; waiting for it to return" in notices[0]
    assert notices[-1] == "the ring has formed again; going on"


async def stream_and_kill(ring: NodeRing, stage: int) -> None:
    """Kill a node when the first token comes, and read on."""
    async with RingClient(ring.clients, recovery_timeout=1.0) as client:
        async for event in client.generate(token_ids=[1, 2, 3], max_tokens=400):
            if event.token_ids:
                ring.nodes[stage].send_signal(signal.SIGKILL)


def test_a_deadline_turns_the_pause_into_one_clear_error(llama: Path) -> None:
    with NodeRing(llama / "shards-3", 3, "--recovery-timeout", "1") as ring:
        with pytest.raises(RingError, match=r"has not formed for 1 s: stage 1 \(.*, layers 2-3\) is gone") as caught:
            asyncio.run(asyncio.wait_for(stream_and_kill(ring, 1), 60))
        assert caught.value.code == "stage_failed"


def test_a_head_that_never_returns_is_one_clear_error(llama: Path) -> None:
    with NodeRing(llama / "shards-1", 1) as ring:
        with pytest.raises(RingError, match="has not returned for 1 s") as caught:
            asyncio.run(asyncio.wait_for(stream_and_kill(ring, 0), 60))
        assert caught.value.code == "no_head"
