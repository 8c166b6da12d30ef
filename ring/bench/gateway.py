"""How much of RingClient's throughput is left over HTTP: the same streams by both ways in turn, in one run.

    python -m ring.bench.gateway [--nodes 3] [--streams 16] [--tokens 128] [--rounds 10] [--checkpoint DIR] [--json]

Starts a ring and a gateway of its own on loopback, each in its own processes. A round is the same prompts once through
RingClient and once through `POST /v1/completions` with `stream`; which of them goes first alternates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psutil

from ring.client import RingClient
from ring.launch import LocalRing, free_ports
from ring.up import cached_split, wait_ready


class Measured(msgspec.Struct):
    """One run in tokens per second, and the gateway's CPU time for each token in microseconds (over HTTP only)."""

    tokens_per_s: float
    gateway_us: float | None = None


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="default: the pocket model")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="for each stream")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    shards = cached_split(options.checkpoint, options.nodes, None, lambda config: None, say)
    *_, client_port, http_port = free_ports(options.nodes + 2)
    clients = f"tcp://127.0.0.1:{client_port}"
    with tempfile.TemporaryDirectory(prefix="ring-bench-") as logs:
        arguments = ["--threads", "1", "--kv-memory", "256M"]
        ring = LocalRing(shards, options.nodes, clients, Path(logs), arguments, say)
        ring.start()
        serve = [sys.executable, "-m", "ring", "serve", "--head", clients, "--port", str(http_port)]
        with (Path(logs) / "gateway.log").open("wb") as log:
            gateway = subprocess.Popen(serve, stderr=log)
        try:
            rounds = asyncio.run(measure(ring, clients, http_port, gateway.pid, options))
        finally:
            gateway.terminate()
            gateway.wait()
            ring.stop()
    report(rounds, options.json)


async def measure(ring: LocalRing, clients: str, port: int, gateway: int, options: Any) -> list[tuple[Measured, Measured]]:
    """The rounds: through RingClient, over HTTP."""
    await wait_ready(ring, clients)
    process = psutil.Process(gateway)
    rounds: list[tuple[Measured, Measured]] = []
    async with RingClient(clients) as client:
        await wait_healthy(port)
        await direct(client, options.streams, 16)
        await over_http(port, process, options.streams, 16)
        for number in range(options.rounds):
            if number % 2:
                http = await over_http(port, process, options.streams, options.tokens)
                plain = await direct(client, options.streams, options.tokens)
            else:
                plain = await direct(client, options.streams, options.tokens)
                http = await over_http(port, process, options.streams, options.tokens)
            rounds.append((plain, http))
    return rounds


async def direct(client: RingClient, streams: int, tokens: int) -> Measured:
    """All streams through RingClient."""

    async def one(index: int) -> None:
        count = 0
        async for event in client.generate(token_ids=prompt(index), max_tokens=tokens, ignore_eos=True):
            count += len(event.token_ids)
        assert count == tokens

    started = time.perf_counter()
    await asyncio.gather(*(one(index) for index in range(streams)))
    return Measured(streams * tokens / (time.perf_counter() - started))


async def over_http(port: int, gateway: psutil.Process, streams: int, tokens: int) -> Measured:
    """All streams over HTTP, read by a client that costs as little as it can."""

    async def one(index: int) -> None:
        body = {
            "prompt": prompt(index),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer = await exchange(port, "POST /v1/completions", msgspec.json.encode(body))
        assert b'"completion_tokens":%d,' % tokens in answer, answer[-500:]

    before = sum(gateway.cpu_times()[:2])
    started = time.perf_counter()
    await asyncio.gather(*(one(index) for index in range(streams)))
    elapsed = time.perf_counter() - started
    return Measured(streams * tokens / elapsed, (sum(gateway.cpu_times()[:2]) - before) / (streams * tokens) * 1e6)


async def exchange(port: int, request: str, body: bytes = b"") -> bytes:
    """One HTTP request on a connection of its own; the whole answer, headers and all."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{request} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = bytearray()
    while chunk := await reader.read(1 << 16):
        answer += chunk
    writer.close()
    return bytes(answer)


async def wait_healthy(port: int) -> None:
    """Until the gateway has found the ring."""
    while True:
        try:
            if b" 200 OK" in await exchange(port, "GET /health"):
                return
        except OSError:
            pass
        await asyncio.sleep(0.1)


def prompt(index: int) -> list[int]:
    """A short prompt, another one for each stream."""
    return [1 + index, 2, 3, 4, 5]


def report(rounds: list[tuple[Measured, Measured]], as_json: bool) -> None:
    """The medians and how far the rounds lie apart."""
    ratios = sorted(http.tokens_per_s / plain.tokens_per_s for plain, http in rounds)
    if as_json:
        print(json.dumps({"ratios": ratios, "rounds": msgspec.to_builtins(rounds)}))
        return
    for name, figures in (
        ("RingClient  tokens/s", [plain.tokens_per_s for plain, _ in rounds]),
        ("HTTP        tokens/s", [http.tokens_per_s for _, http in rounds]),
        ("HTTP/RingClient    %", [100 * ratio for ratio in ratios]),
        ("gateway CPU µs/token", [http.gateway_us or 0.0 for _, http in rounds]),
    ):
        print(f"{name}  median {median(figures):8.1f}   lowest {min(figures):8.1f}   highest {max(figures):8.1f}")


if __name__ == "__main__":
    main()
