"""Plans against every other: the cost model, the memory limit, and what is said of machines and models that do not fit."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring.plan.cost import PROCESS, Load, StageCost, Work, chunk_work, load_work, transfer
from ring.plan.fit import DoesNotFit
from ring.plan.machines import Machine, MachineError, equal_machines, read_machines
from ring.plan.plan import Aim, Plan
from ring.plan.planner import SLOWER, Planner
from ring.plan.report import make_plan
from ring.plan.units import UnitError, parse_bandwidth, parse_flops, parse_network, parse_size, parse_time
from weights_tools.facts import ModelFacts

GB = 10**9


def model(layers: int = 8, layer: int = GB, head: int = GB // 2, embedding: int = GB // 2, **changes: object) -> ModelFacts:
    facts = ModelFacts(
        name="model",
        model_type="llama",
        dtype="bfloat16",
        layer_bytes=[layer] * layers,
        expert_bytes=[0] * layers,
        experts=0,
        experts_used=0,
        kv_bytes=[4096] * layers,
        windows=[None] * layers,
        head_bytes=head,
        embedding_bytes=embedding,
        tied_bytes=0,
        hidden_size=4096,
        attention_width=4096,
        vocabulary=32000,
        context=4096,
    )
    return msgspec.structs.replace(facts, **changes)


def planned(facts: ModelFacts, machines: list[Machine], load: Load | None = None, aim: Aim = "throughput") -> Plan:
    return make_plan(Planner(facts, machines, load or Load(), aim))


machine_kinds = st.builds(
    Machine,
    name=st.just(""),
    memory=st.integers(2 * GB, 12 * GB),
    bandwidth=st.sampled_from([5e9, 20e9, 80e9]),
    compute=st.sampled_from([{}, {"": 50e9}, {"": 2e12}]),
    layer_overhead=st.sampled_from([0.0, 0.01]),
    latency=st.sampled_from([0.0, 1e-3, 0.2]),
    network=st.sampled_from([1e7, 1e9]),
)


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(machine_kinds, min_size=1, max_size=4),
    layers=st.integers(1, 6),
    streams=st.integers(1, 9),
    aim=st.sampled_from(["throughput", "latency"]),
    tied=st.booleans(),
)
def test_no_other_plan_is_better(kinds: list[Machine], layers: int, streams: int, aim: Aim, tied: bool) -> None:
    facts = model(layers, tied_bytes=GB // 2 if tied else 0)
    load = Load(streams=streams, prompt=100, new_tokens=50, context=1000)
    machines = [msgspec.structs.replace(kind, name=f"m{number}") for number, kind in enumerate(kinds)]
    laps: dict[object, float] = {}
    for count in range(1, min(len(machines), layers) + 1):
        for chosen in combinations(machines, count):
            for inner in combinations(range(1, layers), count - 1):
                cut = list(pairwise([0, *inner, layers]))
                stages = [StageCost(facts, m, start, end) for m, (start, end) in zip(chosen, cut, strict=True)]
                if all(stage.memory(load) <= stage.machine.memory for stage in stages):
                    laps[tuple(m.name for m in chosen), tuple(cut)] = lap_of(facts, stages, load, aim)
    if not laps:
        with pytest.raises(DoesNotFit, match="are short"):
            planned(facts, machines, load, aim)
        return
    plan = planned(facts, machines, load, aim)
    used = tuple(stage.machine for stage in plan.stages)
    found = tuple((stage.first_layer, stage.end_layer) for stage in plan.stages)
    assert laps[used, found] == pytest.approx(plan.lap_s)
    assert plan.lap_s <= min(laps.values()) * (1 + (SLOWER if aim == "throughput" else 0) + 1e-6)
    assert all(stage.memory_bytes <= stage.memory_limit for stage in plan.stages)
    assert {m.name for m in machines} == {*used, *(left.machine for left in plan.left_out)}


def lap_of(facts: ModelFacts, stages: list[StageCost], load: Load, aim: Aim) -> float:
    """The lap by the formulas of docs/plan.md, written out."""
    streams = load.streams if aim == "throughput" else 1
    rows = -(-streams // min(streams, len(stages)))
    groups = -(-streams // rows)
    way, busiest = 0.0, 0.0
    for stage in stages:
        step = stage.seconds(load_work(load, rows))
        busy = step
        if aim == "throughput":
            tokens = streams / groups * load.prompt / load.new_tokens
            busy += tokens * stage.seconds(chunk_work(load)) / chunk_work(load).prefill
        wire = latency = 0.0
        if len(stages) > 1:
            wire = transfer(facts, stage.machine, rows, stage.end == facts.layers)
            latency = stage.machine.latency
        way += step + wire + latency
        busiest = max(busiest, busy, wire)
    return max(way, groups * busiest)


def test_a_step_reads_the_weights() -> None:
    machine = Machine("m", 100 * GB, bandwidth=20e9, compute={"": 200e9})
    stage = StageCost(model(), machine, 0, 4)
    assert stage.seconds(Work(1)) == pytest.approx(4 / 20), "the embedding takes no time"
    assert stage.seconds(Work(5)) == pytest.approx(4 / 20), "memory is the limit up to ten rows"
    assert stage.seconds(Work(20)) == pytest.approx(20 * 4 * GB / 200e9), "two operations for each weight of two bytes"
    assert StageCost(model(), machine, 4, 8).seconds(Work(1, sampled=1)) == pytest.approx(4.5 / 20)
    assert stage.seconds(Work(1, attended=1000)) == pytest.approx(4 / 20 + 4 * 4096 * 1000 / 20e9)


def test_windows_bound_what_is_read_but_not_what_is_kept() -> None:
    machine = Machine("m", 100 * GB)
    full, windowed = StageCost(model(), machine, 0, 8), StageCost(model(windows=[100] * 8), machine, 0, 8)
    assert full.memory(Load()) == windowed.memory(Load()), "the ring's cache keeps every token"
    read = full.seconds(Work(1, attended=1100)) - windowed.seconds(Work(1, attended=1100))
    assert read == pytest.approx(8 * 4096 * 1000 / machine.bandwidth)


def test_experts_that_no_row_uses_are_not_read() -> None:
    facts = model(expert_bytes=[GB * 8 // 10] * 8, experts=8, experts_used=2)
    machine = Machine("m", 100 * GB, bandwidth=20e9, compute={"": 1e15})
    assert StageCost(facts, machine, 0, 1).seconds(Work(1)) == pytest.approx((0.2 + 0.8 / 4) / 20)
    assert StageCost(facts, machine, 0, 1).seconds(Work(64)) == pytest.approx(1 / 20, rel=0.01)


def test_measured_rates_between_and_beyond() -> None:
    machine = Machine("m", GB, linear={"float32": {1: 10e9, 8: 5e9, 128: 1e9}})
    assert machine.seconds_per_byte("float32", 1) == 1 / 10e9
    assert machine.seconds_per_byte("float32", 4.5) == pytest.approx((1 / 10e9 + 1 / 5e9) / 2)
    assert machine.seconds_per_byte("float32", 256) == pytest.approx(2 / 1e9)
    assert machine.flops("float32") == pytest.approx(2 * 128 / 4 * 1e9)


def test_equal_machines_share_evenly_and_a_slow_one_is_named() -> None:
    machines = equal_machines(3, "8G", "20GB/s", None, "0.1ms", "10Gbit")
    plan = planned(model(9), machines, Load(streams=12))
    assert [(s.first_layer, s.end_layer) for s in plan.stages] == [(0, 3), (3, 6), (6, 9)]
    slow = msgspec.structs.replace(machines[0], name="pi", bandwidth=1e9, compute={"": 1e9})
    plan = planned(model(9), [*machines, slow], Load(streams=12))
    assert [left.machine for left in plan.left_out] == ["pi"]
    assert "instead of" in plan.left_out[0].reason
    tiny = msgspec.structs.replace(machines[0], name="tiny", memory=GB)
    assert "not even one layer" in planned(model(9), [*machines, tiny]).left_out[0].reason


def test_what_one_more_machine_changes() -> None:
    machines = equal_machines(2, "16G", "20GB/s", "100GFLOPS", "0.1ms", "10Gbit")
    plan = planned(model(8), machines, Load(streams=32))
    assert plan.bottleneck.kind == "compute" and plan.one_more is not None
    assert plan.one_more.stages == 3
    assert plan.one_more.many.tokens_per_s > 1.2 * plan.many.tokens_per_s
    lonely = planned(model(8), machines, Load(streams=1), "latency")
    assert len(lonely.stages) == 1 and lonely.one_more is not None and "not be used" in lonely.one_more.says


def test_bottlenecks() -> None:
    def kind(load: Load, **machine: object) -> str:
        machines = [
            msgspec.structs.replace(m, **machine) for m in equal_machines(2, "6G", "20GB/s", "10TFLOPS", "0.1ms", "10Gbit")
        ]
        return planned(model(8), machines, load).bottleneck.kind

    assert kind(Load(streams=8, prompt=8)) == "memory"
    assert kind(Load(streams=8), compute={"": 20e9}) == "compute"
    assert kind(Load(streams=64, prompt=8, context=256), network=1e5) == "link"
    assert kind(Load(streams=2), latency=2.0) == "way"
    assert kind(Load(streams=8, prompt=8), layer_overhead=1.0) == "overhead"


def test_any_order_finds_the_machine_for_the_embedding() -> None:
    facts = model(4, head=0, embedding=4 * GB)
    small, large = equal_machines(2, "4G", "20GB/s", None, "0ms", "10Gbit")
    large = msgspec.structs.replace(large, name="large", memory=8 * GB)
    with pytest.raises(DoesNotFit):
        planned(facts, [small, large])
    plan = make_plan(Planner(facts, [small, large], Load(), "throughput", any_order=True))
    assert [stage.machine for stage in plan.stages] == ["large", "node-0"]
    with pytest.raises(MachineError, match="8 machines at most"):
        Planner(facts, [small] * 9, Load(), "throughput", any_order=True)


def test_what_would_fit_is_said() -> None:
    facts = model(8, dtype="float32", kv_bytes=[10**5] * 8)
    machines = equal_machines(2, "6G", "20GB/s", None, "1ms", "1Gbit")
    with pytest.raises(DoesNotFit) as error:
        planned(facts, machines, Load(streams=4, context=2000))
    says = str(error.value)
    assert "\n" not in says and "9 GB of weights" in says and "6.4 GB of KV cache" in says
    assert "with a context of" in says and "with 1 stream (--streams)" in says
    assert "on 2 more machines like node-0" in says
    context = int(says.partition("with a context of ")[2].split(" ")[0].replace(",", ""))
    planned(facts, machines, Load(streams=4, context=context))
    with pytest.raises(DoesNotFit):
        planned(facts, machines, Load(streams=4, context=context + 1))
    with pytest.raises(DoesNotFit, match="as bfloat16"):
        planned(model(8, dtype="float32"), equal_machines(1, "8G", "1G", None, "0ms", "1G"))


def test_memory_counts_everything() -> None:
    load = Load(streams=3, context=100)
    facts = model(2)
    machine = Machine("m", 0)
    assert StageCost(facts, machine, 0, 1).memory(load) == int(1.5 * GB * 1.05) + PROCESS + 4096 * 300
    assert StageCost(facts, machine, 1, 2).memory(load) == int(1.5 * GB * 1.05) + PROCESS + 4096 * 300
    tied = model(2, tied_bytes=GB // 2)
    assert StageCost(tied, machine, 0, 2).weight_bytes == int(2.5 * GB)


def test_machines_file(tmp_path: Path) -> None:
    path = tmp_path / "machines.toml"
    path.write_text(
        '[[machines]]\nname = "alpha"\nmemory = "16G"\nbandwidth = "20GB/s"\ncompute = "300GFLOPS"\nlatency = "0.3ms"\n'
        'network = "1Gbit"\n[[machines]]\nname = "beta"\nmemory = 1000000000\n[machines.linear.float32]\n1 = "10GB/s"\n'
        '8 = "5GB/s"\n'
    )
    alpha, beta = read_machines(path)
    assert (alpha.memory, alpha.bandwidth, alpha.latency, alpha.network) == (16 << 30, 20e9, 0.3e-3, 1e9)
    assert alpha.flops("bfloat16") == 300e9
    assert beta.linear == {"float32": {1: 10e9, 8: 5e9}}


ONE = '[[machines]]\nname = "a"\nmemory = "16G"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no machine"),
        ("[[machines", "is no TOML"),
        ('machines = "alpha"', "names no machine"),
        ('[[machines]]\nname = "a"', "missing required field `memory`"),
        ('[[machines]]\nname = "a"\nmemory = "16G"\nbandwith = "1G"', "unknown field `bandwith`"),
        ('[[machines]]\nname = "a"\nmemory = "16G"\n[[machines]]\nname = "a"\nmemory = "16G"', "two machines called 'a'"),
        ('[[machines]]\nname = "a"\nmemory = "lots"', "toml: machine 1: 'lots' is not a size"),
        (ONE + "at_once = nan", "`at_once` that is not positive"),
        (ONE + "threads = 0", "a node needs one"),
        (ONE + 'linear = "fast"', "`linear` is a table"),
        (ONE + '[machines.linear.float32]\n0 = "1GB/s"', "'0', which is no number of rows"),
        (ONE + '[machines.linear.float32]\neight = "1GB/s"', "'eight', which is no number of rows"),
        (ONE + '[machines.linear.fp32]\n1 = "1GB/s"', "'fp32' is no dtype; use one of float32"),
        (ONE + 'compute = { bf16 = "1GFLOPS" }', "'bf16' is no dtype"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "machines.toml").write_text(text)
    with pytest.raises(MachineError, match=says):
        read_machines(tmp_path / "machines.toml")
    with pytest.raises(MachineError, match="cannot be read"):
        read_machines(tmp_path / "none.toml")


def test_units() -> None:
    assert [parse_size(text) for text in ("16G", "16 GiB", "512m", 7)] == [16 << 30, 16 << 30, 512 << 20, 7]
    assert [parse_time(text) for text in ("0.3ms", "50us", "50µs", "2s", 0)] == pytest.approx([3e-4, 5e-5, 5e-5, 2, 0])
    assert [parse_network(text) for text in ("1Gbit", "100Mbit/s", 5e6)] == [1e9, 1e8, 5e6]
    assert (parse_bandwidth("20GB/s"), parse_flops("1.5TFLOPS")) == (20e9, 1.5e12)
    for wrong in ("", "16X", "-1G", "nanG", "0", "1e999G", "16G16"):
        with pytest.raises(UnitError, match="is not a size"):
            parse_size(wrong)


def test_nodes_on_one_computer_share_it() -> None:
    """Two nodes on one memory are no faster than one of them; with room for both they are."""
    machines = equal_machines(2, "16G", "20GB/s", "20GFLOPS", "0ms", "10Gbit")
    shared = [msgspec.structs.replace(machine, host="box", at_once=1.0) for machine in machines]
    apart = [msgspec.structs.replace(machine, host="box", at_once=2.0) for machine in machines]
    laps = [planned(model(8), some, Load(streams=8)).lap_s for some in (machines, apart)]
    assert laps[0] == laps[1]
    plan = planned(model(8), shared, Load(streams=8))
    assert plan.lap_s == pytest.approx(2 * laps[0])
    rates = [planned(model(8), some, Load(streams=8, prompt=8)).many.tokens_per_s for some in (machines, shared)]
    assert rates[1] < 0.7 * rates[0], "the prediction shares it too"
