"""What clients may ask of a ring, and what it answers, over real sockets between real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import zmq

from ring.answers import Completion, NoHead, RingError
from ring.client import RingClient
from ring.sync import SyncRingClient
from ring.wire.clients import Event, Lap, Status
from tests.e2e.harness import NodeRing
from tests.models import ragged_prompts

SAMPLED: dict[str, Any] = {"max_tokens": 20, "temperature": 0.9, "top_p": 0.9, "top_k": 50, "seed": 7}


@pytest.fixture(scope="module")
def ring(llama: Path) -> Iterator[NodeRing]:
    with NodeRing(llama / "shards-3", 3, "--max-waiting", "250", "--no-speculate") as ring:
        yield ring


async def idle(client: RingClient) -> Status:
    """Wait until nothing runs and every stage has said that it holds no KV cache."""
    while True:
        status = await client.status()
        if not status.running and not status.waiting and all(stage.kv_used == 0 for stage in status.stages):
            return status
        await asyncio.sleep(0.05)


def test_status_describes_the_stages(ring: NodeRing) -> None:
    status = asyncio.run(ring.wait_for("ready"))
    assert [(s.info.stage, s.info.first_layer, s.info.end_layer) for s in status.stages] == [(0, 0, 2), (1, 2, 4), (2, 4, 5)]
    assert status.kv_tokens == min(s.info.kv_tokens for s in status.stages)
    assert [s.info.pid for s in status.stages] == [ring.nodes[k].pid for k in range(3)]


def test_two_hundred_requests_at_once(ring: NodeRing) -> None:
    async def run() -> None:
        async with RingClient(ring.clients) as client:
            prompts = ragged_prompts(200, longest=140, seed=5)
            answers = await asyncio.gather(*(client.complete(token_ids=p, max_tokens=6) for p in prompts))
            assert [len(answer.token_ids) for answer in answers] == [6] * 200
            assert (await idle(client)).kv_used == 0

    asyncio.run(run())


def test_too_many_requests_are_told_so(ring: NodeRing) -> None:
    async def one(client: RingClient) -> str:
        try:
            await client.complete(token_ids=[1, 2, 3], max_tokens=8)
        except RingError as error:
            return error.code
        return "ok"

    async def run() -> None:
        async with RingClient(ring.clients) as client:
            outcomes = await asyncio.gather(*(one(client) for _ in range(600)))
            assert set(outcomes) == {"ok", "busy"}
            assert outcomes.count("ok") >= 250
            await idle(client)

    asyncio.run(run())


def test_sampling_depends_on_the_request_alone(ring: NodeRing, llama: Path) -> None:
    prompts = ragged_prompts(8, longest=30, seed=9)

    async def ask(clients: str, together: bool) -> list[list[int]]:
        async with RingClient(clients) as client:
            asks = [client.complete(token_ids=prompt, **SAMPLED) for prompt in prompts]
            answers = await asyncio.gather(*asks) if together else [await one for one in asks]
            return [answer.token_ids for answer in answers]

    alone = asyncio.run(ask(ring.clients, together=False))
    assert asyncio.run(ask(ring.clients, together=True)) == alone
    with NodeRing(llama / "shards-1", 1) as single:
        assert asyncio.run(ask(single.clients, together=True)) == alone
    assert len({tuple(tokens) for tokens in alone}) == len(alone)


@pytest.mark.parametrize(
    ("request_fields", "code", "words"),
    [
        ({"token_ids": [1] * 512}, "too_long", "context is 512"),
        ({"token_ids": [1, 300]}, "bad_request", "token id 300 is outside the vocabulary of 300"),
        ({"token_ids": []}, "bad_request", "empty"),
        ({"prompt": "hello"}, "bad_request", "no tokenizer"),
        ({}, "bad_request", "either a prompt or token ids"),
        ({"token_ids": [1], "temperature": -1.0}, "bad_request", "temperature"),
        ({"token_ids": [1], "top_p": 0.0}, "bad_request", "top_p"),
        ({"token_ids": [1], "max_tokens": 0}, "bad_request", "max_tokens"),
    ],
)
def test_bad_requests(ring: NodeRing, request_fields: dict[str, object], code: str, words: str) -> None:
    with SyncRingClient(ring.clients) as client, pytest.raises(RingError, match=words) as caught:
        client.complete(**request_fields)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_the_answer_is_cut_to_the_context(ring: NodeRing) -> None:
    with SyncRingClient(ring.clients) as client:
        answer = client.complete(token_ids=[1] * 500, max_tokens=1000)
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 12)


def test_cancel_frees_slots_on_every_stage(ring: NodeRing) -> None:
    async def run() -> None:
        async with RingClient(ring.clients) as client:
            async with contextlib.aclosing(client.generate(token_ids=[1, 2, 3], max_tokens=500)) as events:
                async for event in events:
                    if event.token_ids:
                        break
            await idle(client)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_client_that_vanishes_frees_its_slots(ring: NodeRing) -> None:
    program = (
        "import sys\nfrom ring.sync import SyncRingClient\n"
        "with SyncRingClient(sys.argv[1]) as ring:\n"
        "    for event in ring.generate(token_ids=[1, 2], max_tokens=500):\n"
        "        print('token', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, ring.clients], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"token\n"
    process.kill()
    process.wait()

    async def run() -> None:
        async with RingClient(ring.clients) as client:
            await idle(client)

    asyncio.run(asyncio.wait_for(run(), 30))


def test_traces_add_up(ring: NodeRing) -> None:
    async def run() -> tuple[Completion, list[Lap]]:
        laps: list[Lap] = []
        async with RingClient(ring.clients) as client:

            async def watch() -> None:
                async for trace in client.traces():
                    if isinstance(trace, Lap):
                        laps.append(trace)
                    else:
                        assert isinstance(trace, Event)

            watching = asyncio.create_task(watch())
            await client.status()  # the head has seen the watch request by now: they came in order
            answer = await client.complete(token_ids=list(range(1, 200)), max_tokens=5)
            while not laps or laps[-1].runs[0].start < 202:
                await asyncio.sleep(0.01)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        return answer, laps

    answer, laps = asyncio.run(run())
    runs = [run for lap in laps for run in lap.runs]
    chunks = [run for run in runs if run.prefill]
    assert [run.start for run in chunks] == [sum(run.count for run in chunks[:k]) for k in range(len(chunks))]
    assert len(chunks) > 1 and sum(run.count for run in chunks) == 199, "longer than a microbatch may be"
    assert [(run.start, run.count) for run in runs if not run.prefill] == [(199 + k, 1) for k in range(4)]
    for lap in laps:
        assert [hop.stage for hop in lap.hops] == [0, 1, 2]
        assert sum(h.queue_ns + h.compute_ns + h.send_ns + h.wire_ns for h in lap.hops) == lap.duration_ns
        assert all(min(h.queue_ns, h.compute_ns, h.send_ns, h.wire_ns) >= 0 for h in lap.hops)
    assert answer.timings is not None
    assert [stage.laps for stage in answer.timings.stages] == [len(laps)] * 3
    for k, timing in enumerate(answer.timings.stages):
        assert timing.compute_s == pytest.approx(sum(lap.hops[k].compute_ns for lap in laps) / 1e9)


def test_foreign_bytes_on_every_port_change_nothing(ring: NodeRing) -> None:
    with SyncRingClient(ring.clients) as client:
        before = client.complete(token_ids=[5, 6, 7], max_tokens=8).token_ids
        addresses = [ring.address(stage) for stage in range(3)] + [ring.clients]
        for address in addresses:
            host, port = urlsplit(address).hostname, urlsplit(address).port
            with socket.create_connection((host, port)) as raw:
                raw.sendall(os.urandom(5000))
            with socket.create_connection((host, port)) as raw:
                raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        for address in addresses:
            with context.socket(zmq.DEALER if address == ring.clients else zmq.PUSH) as stranger:
                stranger.linger = 2000
                stranger.connect(address)
                for frames in ([b""], [os.urandom(50)], [os.urandom(500)] * 3, [msgspec.msgpack.encode({"type": "release"})]):
                    stranger.send_multipart(frames)
                stranger.send(msgspec.msgpack.encode({"type": "generate", "request": 1, "surprise": 2}))
                stranger.send(msgspec.msgpack.encode(["generate"]))
        context.term()
        assert client.complete(token_ids=[5, 6, 7], max_tokens=8).token_ids == before
    assert all(node.poll() is None for node in ring.nodes.values())
    assert "Traceback" not in ring.all_logs()


def test_leaving_the_client_ends_what_waits_for_an_answer(ring: NodeRing) -> None:
    async def run() -> None:
        async with RingClient(ring.clients) as client:
            asking = asyncio.create_task(client.complete(token_ids=[1, 2, 3], max_tokens=500))
            await client.status()  # it has been asked by now
        with pytest.raises(NoHead):
            await asking
        with pytest.raises(NoHead, match="closed"):  # nor is anything asked that would never be answered
            await client.complete(token_ids=[1, 2, 3])

    asyncio.run(asyncio.wait_for(run(), 30))


def test_who_reads_slowly_gets_several_tokens_at_once(ring: NodeRing) -> None:
    async def run() -> None:
        async with RingClient(ring.clients) as client:
            events = client.generate(token_ids=[1, 2, 3], max_tokens=12, logprobs=1)
            counts = [len((await anext(events)).token_ids)]
            while (await client.status()).running:
                await asyncio.sleep(0.01)
            async for event in events:
                assert len(event.logprobs) == len(event.token_ids)
                counts.append(len(event.token_ids))
            assert sum(counts) == 12
            assert counts[1] > 5 and counts[-1] == 0

    asyncio.run(asyncio.wait_for(run(), 30))
