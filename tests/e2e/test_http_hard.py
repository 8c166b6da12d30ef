"""What the gateway does when things go wrong: load, hang-ups, dead nodes, a head that restarts, its own end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from ring.launch import free_ports
from tests.e2e.harness import NodeRing
from tests.e2e.http_load import CONNECTIONS, storm
from tests.e2e.http_server import HttpServer, idle
from tests.e2e.spawn import Node

LONG: dict[str, Any] = {"token_ids": [1, 2, 3], "max_tokens": 400, "ignore_eos": True}


@pytest.fixture(scope="module")
def ring(llama: Path) -> Iterator[NodeRing]:
    with NodeRing(llama / "shards-3", 3) as ring:
        yield ring


class Reading(threading.Thread):
    """Reads a stream of `/generate` in a thread; `started` is set by its first event."""

    def __init__(self, url: str, **body: Any) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.body = body | {"stream": True}
        self.started = threading.Event()
        self.events: list[Any] = []
        self.done = False

    def run(self) -> None:
        """Read to the end."""
        with httpx2.stream("POST", f"{self.url}/generate", json=self.body, timeout=60) as response:
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    self.done = True
                elif line:
                    self.events.append(json.loads(line.removeprefix("data: ")))
                    self.started.set()

    def begin(self) -> None:
        """Start, and wait for the first event."""
        self.start()
        assert self.started.wait(30)

    def end(self) -> Any:
        """The last event, once the stream has ended."""
        self.join(60)
        assert not self.is_alive()
        return self.events[-1]


def check(outcomes: Any, connections: int, server: HttpServer, ring: NodeRing) -> None:
    """Every connection ended as it should, and nothing is left of any."""
    each = connections // len(CONNECTIONS)
    for kind in ("whole", "stream", "slow"):
        assert outcomes[f"{kind}: complete"] + outcomes[f"{kind}: 429"] >= each, outcomes
    assert outcomes["whole: complete"] > 0
    assert not any("cut short" in outcome or "no answer" in outcome for outcome in outcomes), outcomes
    asyncio.run(idle(ring.clients))
    assert server.wait_for(200, "/ready")["status"] == "ok"
    metrics = httpx2.get(f"{server.url}/metrics").text
    assert "ring_http_requests_in_progress 1.0" in metrics
    assert "Traceback" not in server.log()


def test_connections_of_every_kind_leave_nothing_behind(ring: NodeRing) -> None:
    with HttpServer(ring) as server:
        outcomes = asyncio.run(storm(server.port, 56))
        check(outcomes, 56, server, ring)
        assert sum(count for outcome, count in outcomes.items() if "complete" in outcome) == 24, outcomes


def test_more_than_may_run_are_told_so(ring: NodeRing) -> None:
    with HttpServer(ring, "--max-requests", "4") as server:
        outcomes = asyncio.run(storm(server.port, 56))
        check(outcomes, 56, server, ring)
        assert sum(count for outcome, count in outcomes.items() if "429" in outcome) > 0, outcomes


@pytest.mark.slow
def test_two_hundred_connections_again_and_again_need_no_more_memory(ring: NodeRing) -> None:
    with HttpServer(ring) as server:
        memory = []
        for _ in range(8):
            outcomes = asyncio.run(storm(server.port, 200))
            check(outcomes, 200, server, ring)
            memory.append(psutil.Process(server.process.pid).memory_info().rss / 1e6)
        assert max(memory[4:]) - memory[3] < 3, f"MB of memory after each round: {memory}"


def test_a_stage_that_is_gone_makes_it_unhealthy_and_streams_wait_for_its_return(ring: NodeRing) -> None:
    with HttpServer(ring) as server:
        before = httpx2.post(f"{server.url}/generate", json=LONG, timeout=60).json()["token_ids"]
        reading = Reading(server.url, **LONG)
        reading.begin()
        ring.nodes[1].kill()
        assert "stage 1" in server.wait_for(503)["detail"]
        assert "stage 1" in server.wait_for(503, "/ready")["detail"]
        ring.start(1)
        server.wait_for(200)
        assert reading.end()["token_ids"] == before
        assert reading.done


def test_answers_go_on_when_the_head_returns(ring: NodeRing) -> None:
    with HttpServer(ring) as server:
        before = httpx2.post(f"{server.url}/generate", json=LONG, timeout=60).json()["token_ids"]
        reading = Reading(server.url, **LONG)
        reading.begin()
        ring.nodes[0].kill()
        health = server.wait_for(503)
        assert health["state"] == "no_head" and "stage 0" in health["detail"]
        refused = httpx2.post(f"{server.url}/generate", json=LONG)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        ring.start(0)
        server.wait_for(200)
        assert reading.end()["token_ids"] == before
        assert reading.done
        assert "Traceback" not in server.log()


def test_the_gateway_may_start_before_the_ring(llama: Path) -> None:
    ring = NodeRing(llama / "shards-1", 1)
    server = HttpServer(ring)
    server.process = Node(server.command, server.log_file)
    try:
        assert "stage 0" in server.wait_for(503)["detail"]
        ring.start(0)
        server.wait_for(200)
        assert len(httpx2.post(f"{server.url}/generate", json=LONG | {"max_tokens": 3}).json()["token_ids"]) == 3
    finally:
        assert server.stop() == 0
        ring.stop()


def test_answers_finish_before_it_stops(ring: NodeRing) -> None:
    with HttpServer(ring) as server:
        reading = Reading(server.url, **LONG)
        reading.begin()
        assert server.stop() == 0
        assert len(reading.end()["token_ids"]) == 400 and reading.done
        assert "may finish" in server.log() and "Traceback" not in server.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_answers_that_are_too_slow_end_with_an_error(ring: NodeRing, number: signal.Signals) -> None:
    with HttpServer(ring, "--drain", "0") as server:
        reading = Reading(server.url, **LONG)
        reading.begin()
        assert server.stop(number) == 0
        assert reading.end()["error"]["code"] == "draining"
        assert "Traceback" not in server.log()
    asyncio.run(idle(ring.clients))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "give an --api-key-file, or --allow-anyone"),
        (["--host", "192.0.2.1", "--allow-anyone"], "cannot serve at 192.0.2.1"),
        (["--api-key-file", "/nonexistent"], "cannot be read"),
    ],
)
def test_bad_starts_are_one_sentence(tmp_path: Path, options: list[str], words: str) -> None:
    log = tmp_path / "log"
    assert Node(["serve", *options], log).wait() == 1
    assert words in log.read_text()
    assert log.read_text().count("\n") == 1


@pytest.mark.slow
@pytest.mark.slow
def test_ring_up_serves_http_too(tmp_path: Path) -> None:
    head, http = free_ports(2)
    command = [sys.executable, "-m", "ring", "up", "--headless", "--nodes", "2", "--kv-memory", "64M", "--http", str(http)]
    command += ["--clients", f"tcp://127.0.0.1:{head}"]
    environment = os.environ | {"RING_CACHE": str(tmp_path / "cache")}
    up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert up.stdout is not None
    try:
        said = next(line for line in up.stdout if "HTTP is served" in line)
        assert f"http://127.0.0.1:{http}" in said
        health = httpx2.get(f"http://127.0.0.1:{http}/health", timeout=10)
        while health.status_code != 200:  # the gateway looks for the ring twice a second
            health = httpx2.get(f"http://127.0.0.1:{http}/health", timeout=10)
        assert httpx2.post(f"http://127.0.0.1:{http}/generate", json={"prompt": "def ", "max_tokens": 4}).status_code == 200
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(30) == 0
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"http://127.0.0.1:{http}/health")
