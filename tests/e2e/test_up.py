"""`ring up`: a whole ring from one command, and nothing of it left afterwards."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ring.answers import RingError
from ring.client import RingClient
from ring.launch import free_ports
from ring.wire.clients import Status
from tests.e2e.spawn import command

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def clients() -> str:
    return f"tcp://127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture
def start(clients: str) -> Start:
    """Starts `ring up` as a user does."""

    def run(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ring", "up", "--clients", clients, "--threads", "1", *words]
        environment = os.environ | {"COLUMNS": "200"}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=environment)

    return run


async def formed(clients: str) -> Status:
    """Wait until the ring has formed."""
    while True:
        try:
            async with RingClient(clients, timeout=0.5) as client:
                while (status := await client.status()).state != "ready":
                    await asyncio.sleep(0.05)
                return status
        except RingError:
            await asyncio.sleep(0.05)


def gone(pids: list[int]) -> bool:
    """Whether all of these processes have ended, after a moment's grace."""
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    return not alive


def test_one_question_is_answered_with_the_table(start: Start) -> None:
    with start("--nodes", "2", "--ask", "def read(self):\n") as up:
        output, errors = up.communicate(timeout=120)
    assert up.returncode == 0, errors
    assert output.startswith("def read(self):\n")
    assert "time to first token" in output and "compute/lap" in output
    assert re.search(r"^│ +1 │", output, re.MULTILINE), "a row for each stage"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        (signal.SIGKILL, -9),
    ],
)
def test_no_process_is_left_however_it_ends(start: Start, clients: str, number: signal.Signals, code: int) -> None:
    with start("--nodes", "2", "--headless") as up:
        status = asyncio.run(asyncio.wait_for(formed(clients), 120))
        up.send_signal(number)
        _, errors = up.communicate(timeout=30)
    assert up.returncode == code
    assert "Traceback" not in errors
    assert gone([stage.info.pid for stage in status.stages])


@pytest.mark.slow
def test_interrupted_while_it_starts(start: Start) -> None:
    with start("--nodes", "3", "--headless") as up:
        me, deadline = psutil.Process(up.pid), time.monotonic() + 60
        while not (nodes := me.children()):
            assert time.monotonic() < deadline
        up.send_signal(signal.SIGINT)
        _, errors = up.communicate(timeout=30)
    assert up.returncode == 0
    assert "Traceback" not in errors
    assert gone([node.pid for node in nodes])


def test_a_killed_node_is_started_again_and_ctrl_c_leaves_nothing(start: Start, clients: str) -> None:
    with start("--nodes", "2", "--headless") as up:
        before = asyncio.run(asyncio.wait_for(formed(clients), 120)).stages[1].info.pid
        os.kill(before, signal.SIGKILL)
        while (after := asyncio.run(asyncio.wait_for(formed(clients), 120)).stages[1].info.pid) == before:
            pass
        up.send_signal(signal.SIGINT)
        _, errors = up.communicate(timeout=30)
    assert up.returncode == 0
    assert "starting it again" in errors and "Traceback" not in errors
    assert gone([after])


def test_what_cannot_be_started_is_one_sentence(clients: str, tmp_path: Path) -> None:
    for words, says in {("--nodes", "13"): "13 stages need 13 layers", (str(tmp_path),): "config.json"}.items():
        up = command("up", "--clients", clients, "--headless", *words)
        assert up.returncode == 1
        assert says in up.stderr.splitlines()[-1]
        assert "Traceback" not in up.stderr
