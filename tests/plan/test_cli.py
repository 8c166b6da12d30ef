"""The commands as people type them."""

from __future__ import annotations

import json
import signal
import threading
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from ring.cli import app
from ring.launch import free_ports
from ring.plan import link, profile, trial
from ring.plan.commands import chain, ring_file
from ring.plan.cost import Load
from ring.plan.link import LinkError, answer, measure
from ring.plan.machines import equal_machines, read_machines
from ring.plan.planner import Planner
from ring.plan.profile import Profile
from ring.plan.record import record
from ring.plan.report import make_plan
from ring.wire.keys import load_keys
from tests.e2e.harness import NodeRing
from tests.models import make_checkpoint
from weights_tools import pocket
from weights_tools.facts import read_facts
from weights_tools.ringfile import parse_size, read_ring_file
from weights_tools.shard import read_manifest
from weights_tools.split import split


def run(*args: object) -> tuple[int, str, str]:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "110"})
    finally:
        signal.signal(signal.SIGTERM, handler)
    return result.exit_code, result.stdout, result.stderr


def test_plan_then_split(tmp_path: Path) -> None:
    """What is planned from the config alone is what the shards become; another model's plan is refused."""
    plan, out = tmp_path / "plan.json", tmp_path / "shards"
    code, shown, errors = run("plan", pocket.path(), "--nodes", 3, "--memory", "1G", "--streams", 12, "--out", plan)
    assert (code, errors) == (0, "")
    planned = json.loads(plan.read_text())
    assert f"--plan {plan}" in shown and "╭" in shown and "tokens/s" in shown and "bottleneck: " in shown
    assert all(f"{command['on']}$ {command['run']}" in shown for command in planned["commands"])
    code, _, errors = run("split", pocket.path(), "--plan", plan, "--out", out)
    assert (code, errors) == (0, "")
    for stage in planned["stages"]:
        manifest = read_manifest(out / f"stage-{stage['stage']}")
        assert (manifest.first_layer, manifest.end_layer) == (stage["first_layer"], stage["end_layer"])
        assert manifest.bytes == stage["weight_bytes"]
    code, _, errors = run("split", make_checkpoint(tmp_path / "llama"), "--plan", plan, "--out", tmp_path / "other")
    assert code == 1 and "the plan is for pocket-python" in errors and errors.count("\n") == 1
    code, _, errors = run("split", pocket.path(), "--plan", plan, "--dtype", "float32", "--out", tmp_path / "other")
    assert code == 1 and "plan again with --dtype float32" in errors
    assert run("split", pocket.path(), "--plan", plan, "--stages", 2, "--out", tmp_path / "other")[0] == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plan: plan.update(format=9), "plan format 9"),
        (lambda plan: plan.pop("stages"), "is no plan"),
        (lambda plan: plan["stages"].pop(), "is in no range"),
        (lambda plan: plan["stages"][0].update(end_layer=0), "without layers"),
    ],
)
def test_damaged_plans(tmp_path: Path, change: Any, says: str) -> None:
    path = tmp_path / "plan.json"
    run("plan", pocket.path(), "--nodes", 3, "--streams", 12, "--out", path)
    plan = json.loads(path.read_text())
    assert len(plan["stages"]) > 1
    change(plan)
    path.write_text(json.dumps(plan))
    code, _, errors = run("split", pocket.path(), "--plan", path, "--out", tmp_path / "out")
    assert code == 1 and says in errors
    assert "cannot be read" in run("split", pocket.path(), "--plan", tmp_path / "none", "--out", tmp_path / "out")[2]


def test_json_and_the_machines_file(tmp_path: Path) -> None:
    path = tmp_path / "machines.toml"
    path.write_text('[[machines]]\nname = "alpha"\nmemory = "1G"\nthreads = 3\naddress = "10.0.0.1"\n')
    code, text, _ = run("plan", pocket.path(), "--machines", path, "--aim", "latency", "--json")
    plan = json.loads(text)
    assert code == 0 and plan["aim"] == "latency" and plan["stages"][0]["machine"] == "alpha"
    command = plan["commands"][-1]
    assert command["on"] == "alpha" and "--threads 3" in command["run"]
    assert f"--kv-memory {8 * 1024 * 12 * 512}" in command["run"], "so many tokens of KV cache, and no more"


MACHINES = """
[[machines]]
name = "alpha"
memory = "1G"
bandwidth = "50MB/s"
threads = 3
[[machines]]
name = "beta"
memory = "1G"
bandwidth = "50MB/s"
address = "10.0.0.2"
[[machines]]
name = "beta-2"
memory = "1G"
bandwidth = "50MB/s"
address = "10.0.0.2"
"""


def test_a_plan_becomes_a_ring_file(tmp_path: Path) -> None:
    """Which `ring split`, `ring keys` and `ring node` take, and which is not written over."""
    machines, path = tmp_path / "machines.toml", tmp_path / "ring.toml"
    machines.write_text(MACHINES)
    options = ("plan", pocket.path(), "--machines", machines, "--streams", 12, "--ring-toml", path)
    code, shown, errors = run(*options)
    assert (code, errors) == (0, "")
    ring = read_ring_file(path)
    alpha = ring.machine("alpha")
    first, last = map(int, (alpha.layers or "").split("-"))
    assert (alpha.threads, parse_size(alpha.kv_memory or "")) == (3, 12 * 1024 * 512 * (last + 1 - first))
    assert [m.address for m in ring.machines] == ["tcp://alpha:5600", "tcp://10.0.0.2:5600", "tcp://10.0.0.2:5601"]
    assert ring.keys == tmp_path / "keys" and ring.layers is not None
    assert "  beta$ ring node --config ring.toml --name beta\n" in shown
    for line in (f"ring split --config {path}", f"ring keys new {tmp_path / 'keys'} --node alpha --node beta --node beta-2"):
        assert line in shown
        assert run(*line.split()[1:])[0] == 0
    for machine in ring.machines:
        manifest = read_manifest(ring.shard(machine))
        assert f"{manifest.first_layer}-{manifest.end_layer - 1}" == machine.layers
        assert manifest.dtype == ring.dtype and load_keys(ring.keys / machine.name)
    assert run(*options)[0] == 0, "the same is no other"
    code, _, errors = run(*options, "--streams", 9)
    assert code == 1 and "is there already and differs" in errors


def test_a_ring_file_for_a_model_on_the_hub(tmp_path: Path) -> None:
    """Every machine fetches its own part; one machine alone needs no keys."""
    machines = equal_machines(2, "1G", "20GB/s", None, "0ms", "1Gbit")
    plan = make_plan(Planner(read_facts(str(pocket.path())), machines, Load(context=1024), "latency"))
    file = ring_file(plan, machines, "someone/model")
    (line,) = chain(file, tmp_path / "ring.toml")
    name = file.machines[0].name
    assert (file.keys, file.machines[0].address) == (None, "tcp://127.0.0.1:5600")
    fetch, node = (f"ring {what} --config ring.toml --name {name}" for what in ("fetch", "node"))
    assert (line.on, line.run) == (name, f"{fetch} && {node}")


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 2, "give --machines FILE, or --nodes"),
        (["--nodes", 2, "--machines", "m.toml"], 2, "give --machines FILE, or --nodes"),
        (["--machines", "nowhere.toml"], 1, "cannot be read"),
        (["--nodes", 2, "--memory", "100M"], 1, "does not fit"),
        (["--nodes", 2, "--memory", "much"], 1, "is not a size"),
        (["--nodes", 2, "--context", 5000], 1, "the model's context is 1,024 tokens"),
        (["--nodes", 2, "--context", 100], 1, "does not hold a prompt and its answer"),
        (["--nodes", 9, "--any-order"], 1, "8 machines at most"),
    ],
)
def test_mistakes_are_one_sentence(options: list[object], code: int, says: str) -> None:
    found, text, errors = run("plan", pocket.path(), *options)
    assert (found, text) == (code, "")
    assert says in " ".join(errors.replace("│", " ").split())
    assert code == 2 or errors.count("\n") == 1


def test_a_running_ring_gets_a_better_cut(tmp_path: Path) -> None:
    split(str(pocket.path()), tmp_path / "shards", layers="0-1,2-3,4-11")
    with NodeRing(tmp_path / "shards", 3) as ring:
        code, _, errors = run("plan", "--from-head", ring.clients, "--watch", 0.5)
        assert code == 1 and "all but idle: 0 decode laps" in errors
        code, text, errors = run("plan", "--from-head", ring.clients, "--load", 9, "--new-tokens", 64, "--json")
        assert (code, errors) == (0, "")
        found = json.loads(text)
        assert found["proposal"]["gain"] > 0.1 and found["proposal"]["now"] == [[0, 2], [2, 4], [4, 12]]
        stages = found["plan"]["stages"]
        assert max(stage["end_layer"] - stage["first_layer"] for stage in stages) < 8 or len(stages) < 3
        code, text, _ = run("plan", pocket.path(), "--from-head", ring.clients, "--load", 9, "--out", tmp_path / "plan.json")
        assert code == 0 and "the ring's cut (0-1, 2-3, 4-11) can be bettered" in text
        assert run("split", pocket.path(), "--plan", tmp_path / "plan.json", "--out", tmp_path / "better")[0] == 0
        code, _, errors = run("plan", make_checkpoint(tmp_path / "llama"), "--from-head", ring.clients, "--load", 9)
        assert code == 1 and "has 5 layers, and the ring runs pocket-python with 12" in errors


def test_simulated_rings() -> None:
    code, text, _ = run("bench", "simulate", "--stages", "2,64", "--streams", "4", "--new-tokens", 8, "--json")
    small, large = map(json.loads, text.splitlines())
    assert code == 0 and (small["stages"], large["stages"]) == (2, 64)
    assert large["itl_s"] > 20 * small["itl_s"] and large["bubble"] > small["bubble"]
    code, text, _ = run("bench", "simulate", "--step-ms", "10,30,10", "--streams", 4, "--outage", "1:0.5:2")
    assert code == 0 and text.startswith("   3 stages,    4 streams")
    assert "is no outage" in run("bench", "simulate", "--outage", "1:2")[2]
    code, text, _ = run("bench", "simulate", "--model", pocket.path(), "--stages", 3, "--streams", 1, "--json")
    assert code == 0 and json.loads(text)["stages"] == 3


FOUND = Profile("box", 2, 8 << 30, 2e10, {"float32": {1: 1e10, 128: 1e9}}, 1e-4, 1e-5, latency=3e-4, network=1e9)


def test_a_profile_is_written_beside_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "machines.toml"
    path.write_text('# ours\n[[machines]]\nname = "alpha" # by the window\nmemory = "16G"\n')
    record(path, FOUND)
    record(path, FOUND)
    assert path.read_text().startswith('# ours\n[[machines]]\nname = "alpha" # by the window\n')
    alpha, box = read_machines(path)
    assert (box.name, box.memory, box.bandwidth, box.threads) == ("box", 8 << 30, 2e10, 2)
    assert box.linear == FOUND.linear
    assert [box.latency, box.network, box.layer_overhead, box.run_overhead] == pytest.approx([3e-4, 1e9, 1e-4, 1e-5])
    assert not list(tmp_path.glob("*.partial")) and alpha.linear == {}


def test_nodes_that_share_a_machine_are_entries_of_their_own(tmp_path: Path) -> None:
    record(tmp_path / "m.toml", msgspec.structs.replace(FOUND, nodes=2, at_once=1.5))
    machines = read_machines(tmp_path / "m.toml")
    assert [(m.name, m.host, m.at_once, m.memory) for m in machines] == [
        ("box-0", "box", 1.5, 4 << 30),
        ("box-1", "box", 1.5, 4 << 30),
    ]


def test_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quickly, on small layers: the figures are for people to judge."""
    monkeypatch.setattr(trial, "HIDDEN", 128)
    monkeypatch.setattr(trial, "WIDE", 256)
    monkeypatch.setattr(profile, "ROUND_S", 0.01)
    monkeypatch.setattr(profile, "READ", 1 << 20)
    path = tmp_path / "machines.toml"
    code, text, errors = run("profile", "--name", "here", "--threads", 1, "--dtype", "float32", "--out", path, "--json")
    assert code == 0, errors
    found = json.loads(text)
    assert set(found["linear"]["float32"]) == {str(rows) for rows in profile.ROWS}
    assert 0 < found["layer_overhead"] < 1 and found["bandwidth"] > 1e6
    (machine,) = read_machines(path)
    assert machine.name == "here" and set(machine.linear["float32"]) == set(profile.ROWS)
    assert tomllib.loads(path.read_text())["machines"][0]["threads"] == 1


def test_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "BLOCK_S", 0.05)
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    over = threading.Event()
    answering = threading.Thread(target=answer, args=(address, None, lambda _: None, over.is_set))
    answering.start()
    try:
        latency, rate = measure(address, None)
    finally:
        over.set()
        answering.join()
    assert 0 < latency < 1 and rate > 1e6
    monkeypatch.setattr(link, "PATIENCE_S", 0.1)
    with pytest.raises(LinkError, match="nothing answers"):
        measure(address, None)
    with pytest.raises(LinkError, match="is not an address"):
        measure("beta", None)
    code, _, errors = run("profile", "--listen", "tcp://0.0.0.0:5700")
    assert code == 1 and "give --keys, or --insecure" in errors
