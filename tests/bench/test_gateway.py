"""The bench of the gateway's overhead runs and counts what it says it counts; the figures are for people to judge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_bench_reports_every_round(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ring.bench.gateway", "--nodes", "2", "--streams", "3", "--tokens", "8", "--rounds", "2"]
    environment = os.environ | {"RING_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, env=environment)
    told = json.loads(done.stdout)
    assert len(told["ratios"]) == len(told["rounds"]) == 2
    assert all(plain["tokens_per_s"] > 0 and http["gateway_us"] is not None for plain, http in told["rounds"])
