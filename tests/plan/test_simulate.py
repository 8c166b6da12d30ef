"""Simulated rings against what can be worked out by hand, and against real ones."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring.bench.load import Round, random_prompts, run_round
from ring.bench.nodes import BenchRing
from ring.bench.shapes import checkpoint, shards
from ring.client import RingClient
from ring.plan.simulate import Outage, Request, SimStage, Simulation, SimulationError, simulate
from tests.weights_tools.test_facts import LLAMA_405B


def fixed(step: float, latency: float = 0.0, host: str = "", at_once: float = 1.0) -> SimStage:
    return SimStage(lambda _: step, latency=latency, host=host, at_once=at_once)


def test_a_lonely_stream_goes_round() -> None:
    done = simulate([fixed(0.02, 0.001)] * 3, streams=1, prompt=1, new_tokens=20)
    assert done.ttft_s == pytest.approx(0.063)
    assert done.round.gaps_s == pytest.approx([0.063] * 19)
    assert done.bubble == pytest.approx(1 - 0.02 / 0.063)


def test_enough_streams_fill_every_stage() -> None:
    done = simulate([fixed(0.02)] * 4, streams=8, prompt=1, new_tokens=100)
    assert done.round.decode_rate == pytest.approx(2 / 0.02, rel=0.02)
    assert done.bubble < 0.05


def test_the_slowest_stage_sets_the_pace() -> None:
    done = simulate([fixed(0.02), fixed(0.08), fixed(0.02)], streams=12, prompt=1, new_tokens=60)
    laps = median(done.round.gaps_s)
    assert 0.12 <= laps <= 0.17 and done.busy[1] > 3.9 * done.busy[0]


def test_a_long_prompt_passes_in_pieces() -> None:
    stages = [SimStage(lambda work: 0.001 * (work.prefill + work.decodes))] * 4
    done = simulate(stages, streams=1, prompt=1024, new_tokens=2)
    assert 1.024 < done.ttft_s < 1.024 * 1.3, "four stages share it: each takes a second, and they hardly wait"


def test_a_narrow_link() -> None:
    stages = [SimStage(lambda _: 0.01, transfer=lambda rows: 0.03 * rows), fixed(0.01)]
    done = simulate(stages, streams=4, prompt=1, new_tokens=30)
    assert done.round.decode_rate == pytest.approx(1 / 0.03, rel=0.05)


def test_stages_on_one_computer_share_it() -> None:
    def lap(streams: int, at_once: float) -> float:
        stages = [fixed(0.02, host="box", at_once=at_once)] * 2
        return median(simulate(stages, streams, prompt=1, new_tokens=8).round.gaps_s)

    assert lap(1, 1.0) == pytest.approx(0.04), "one stream is in one place at a time"
    assert lap(2, 2.0) == pytest.approx(0.04), "two cores, two stages"
    assert lap(2, 1.0) == pytest.approx(0.08, rel=0.05), "one core, two stages"


def test_a_stage_that_is_gone_for_a_while() -> None:
    stages = [fixed(0.02, 0.001)] * 3
    requests = [Request(8, 50)] * 4
    quiet = Simulation(stages, requests).run()
    done = Simulation(stages, requests, [Outage(1, at=1.0, seconds=5.0)]).run()
    assert [len(times) for times in done.arrivals] == [50] * 4
    assert not any(1.0 < at < 6.0 for times in done.arrivals for at in times)
    assert 5.0 < done.round.wall_s - quiet.round.wall_s < 5.5


def test_requests_come_when_they_come() -> None:
    done = Simulation([fixed(0.01)] * 2, [Request(4, 3, at=0.5), Request(4, 3, at=2.0)]).run()
    assert done.ttft_s == pytest.approx(0.02)
    assert done.arrivals[1][0] == pytest.approx(2.02)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.floats(0.001, 0.1), min_size=1, max_size=6),
    streams=st.integers(1, 9),
    outage=st.none() | st.tuples(st.integers(0, 5), st.floats(0, 2), st.floats(0, 2)),
    shared=st.booleans(),
)
def test_every_token_comes_and_no_stage_does_two_things(
    steps: list[float], streams: int, outage: tuple[int, float, float] | None, shared: bool
) -> None:
    outages = [Outage(outage[0] % len(steps), *outage[1:])] if outage else []
    stages = [fixed(step, 0.001, "box" if shared else "", 1.5) for step in steps]
    done = Simulation(stages, [Request(40, 12)] * streams, outages).run()
    assert [len(times) for times in done.arrivals] == [12] * streams
    assert all(times == sorted(times) for times in done.arrivals)
    assert all(busy <= done.round.wall_s + 1e-9 for busy in done.busy)
    assert min(done.round.gaps_s) >= sum(steps) - 1e-9, "no token is faster than a way round"


def test_what_cannot_be_simulated() -> None:
    with pytest.raises(SimulationError, match="there is no stage 3"):
        Simulation([fixed(0.1)] * 3, [Request(1, 1)], [Outage(3, 0, 1)])
    with pytest.raises(SimulationError, match="a stage and a request"):
        Simulation([], [Request(1, 1)])


def test_it_needs_no_torch(tmp_path: Path) -> None:
    """Nor anything else that takes long to import: it is there at once, and so is a plan of a usual model."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_405B))
    plan = f"app(['plan', {str(tmp_path)!r}, '--nodes', '32', '--memory', '48G'], standalone_mode=False)"
    code = f"import sys; from ring.cli import app; {plan}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    imported = set(done.stdout.splitlines()[-1].split())
    assert "ring.plan.simulate" in imported
    assert not imported & {"torch", "transformers", "zmq", "asyncio", "huggingface_hub"}


def real_rounds(steps_ms: list[float], delay_ms: float, loads: list[int], new_tokens: int) -> list[Round]:
    """For each number of streams a round on emulated stages behind real sockets. A loaded machine only makes a ring slower,
    so the faster of two is nearer to what it can."""
    folder = shards(checkpoint("gpt2-tiny", "float32"), len(steps_ms), "float32", lambda _: None)

    async def measure(ring: BenchRing) -> list[Round]:
        async with RingClient(ring.clients) as client:
            await run_round(client, random_prompts(1, 4, 512), 8)
            rounds = [[await run_round(client, random_prompts(n, 4, 512), new_tokens) for _ in range(2)] for n in loads]
            return [min(pair, key=lambda one: one.wall_s) for pair in rounds]

    with BenchRing(folder, len(steps_ms), ["--threads", "1", "--no-speculate"], steps_ms, 0.0, delay_ms) as ring:
        return asyncio.run(measure(ring))


@pytest.mark.parametrize(
    ("steps_ms", "delay_ms", "loads"),
    [([80, 80, 80], 0.0, [6]), ([40, 120, 40], 0.0, [6]), ([60, 60], 120.0, [1, 8])],
)
def test_real_rings_do_what_simulated_ones_do(
    steps_ms: list[float],
    delay_ms: float,
    loads: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setenv("RING_CACHE", str(tmp_path_factory.getbasetemp() / "simulated"))
    stages = [fixed(step / 1e3, delay_ms / 1e3, "box", len(steps_ms)) for step in steps_ms]
    for streams, real in zip(loads, real_rounds(steps_ms, delay_ms, loads, 12), strict=True):
        expected = simulate(stages, streams, 4, 12)
        assert real.wall_s == pytest.approx(expected.round.wall_s, rel=0.25)
        # What else a machine does only makes gaps longer: the lower quartile is nearest to the ring's own.
        # A second round begins with what the first has tried out, which a longer one finds too.
        settled = simulate(stages, streams, 4, 40)
        real_gap, gap = (quantiles(gaps, n=4)[0] for gaps in (real.gaps_s, settled.round.gaps_s))
        assert real_gap == pytest.approx(gap, rel=0.15)
