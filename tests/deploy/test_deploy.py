"""What `ring deploy` writes is what systemd, Compose and Kubernetes take, by their own tools and schemas."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ring.cli import app
from ring.config import configure
from ring.start import NodeOptions
from tests.weights_tools.test_ringfile import GOOD
from weights_tools.ringfile import read_ring_file

MACHINES = ["alpha", "beta", "delta"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ring.toml"
    path.write_text(GOOD)
    return path


def deploy(file: Path, kind: str, *options: str) -> Path:
    out = file.parent / kind
    done = CliRunner().invoke(app, ["deploy", kind, "--config", str(file), "--out", str(out), "--json", *options])
    assert done.exit_code == 0, done.output
    assert sorted(json.loads(done.stdout)) == sorted(str(path) for path in out.rglob("*") if path.is_file())
    return out


def load(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_units(file: Path) -> None:
    program = Path(sys.executable).parent / "ring"
    out = deploy(file, "systemd", "--ring", str(program))
    for name in MACHINES:
        unit = out / name / "ring-node.service"
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=yes", "--threshold=25", str(unit)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout  # an exposure of at most 2.5 in 10


def test_units(file: Path) -> None:
    file.write_text(GOOD.replace("threads = 4", 'threads = 4\ndevice = "cuda"'))
    out = deploy(file, "systemd")
    unit = (out / "beta" / "ring-node.service").read_text()
    assert "ExecStart=/opt/ring/bin/ring node --config /etc/ring/ring.toml --name beta\n" in unit
    assert {"Restart=always", "KillSignal=SIGTERM", "LimitCORE=0"} <= set(unit.splitlines())
    assert "PrivateDevices=yes" not in unit
    assert "PrivateDevices=yes" in (out / "delta" / "ring-node.service").read_text()


SCHEMAS = [Path("/usr/lib/python3/dist-packages/compose/config/compose_spec.json")]


@pytest.mark.skipif(not any(path.exists() for path in SCHEMAS), reason="docker-compose and its schema are not installed")
def test_compose_takes_the_file(file: Path) -> None:
    out = deploy(file, "compose")
    import jsonschema_rs

    schema = json.loads(next(path for path in SCHEMAS if path.exists()).read_text())
    jsonschema_rs.validate(schema, load(out / "compose.yaml")[0])


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_compose_itself_takes_the_file(file: Path) -> None:
    out = deploy(file, "compose")
    done = subprocess.run(
        ["docker-compose", "-f", str(out / "compose.yaml"), "config"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(yaml.safe_load(done.stdout)["services"]) == set(MACHINES)


def test_services(file: Path) -> None:
    out = deploy(file, "compose", "--image", "here/ring:1")
    (content,) = load(out / "compose.yaml")
    assert list(content["services"]) == MACHINES
    beta = content["services"]["beta"]
    assert beta["image"] == "here/ring:1" and beta["restart"] == "always"
    assert beta["command"][:2] == ["node", "/var/lib/ring/shards/stage-1"]
    assert not any("alpha" in volume for volume in beta["volumes"]), "a machine sees no other's keys"
    done = CliRunner().invoke(app, ["node", "--help"])
    assert all(option in done.stdout for option in ("--config", "--name", "--keys"))


def test_the_dockerfile(file: Path) -> None:
    lines = (deploy(file, "compose") / "Dockerfile").read_text().splitlines()
    words = [line.split()[0] for line in lines if line and not line.startswith(("#", " "))]
    assert words[0] == "FROM" and set(words) <= {
        "FROM",
        "COPY",
        "RUN",
        "USER",
        "WORKDIR",
        "ENV",
        "STOPSIGNAL",
        "ENTRYPOINT",
        "CMD",
    }
    assert words.index("USER") < words.index("ENTRYPOINT")
    root = Path(__file__).parents[2]
    assert all((root / line.split()[1]).exists() for line in lines if line.startswith("COPY"))


def test_kubernetes_takes_the_manifests(file: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for manifest in load(deploy(file, "kubernetes") / "ring.yaml"):
        validate.validate(manifest, os.environ.get("KUBERNETES_VERSION", "1.31"), strict=True)


def test_a_pod_is_a_machine(file: Path, tmp_path: Path) -> None:
    config, ring, head, pods = load(deploy(file, "kubernetes", "--storage", "3Gi") / "ring.yaml")
    assert pods["spec"]["replicas"] == 2 and pods["spec"]["serviceName"] == ring["metadata"]["name"]
    labels = pods["spec"]["template"]["metadata"]["labels"]
    assert ring["spec"]["selector"].items() <= labels.items() and pods["spec"]["selector"]["matchLabels"] == labels
    assert head["spec"]["selector"]["statefulset.kubernetes.io/pod-name"] == "ring-0"
    spec = pods["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in spec["volumes"]} | {
        claim["metadata"]["name"] for claim in pods["spec"]["volumeClaimTemplates"]
    }
    for container in spec["initContainers"] + spec["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    inside = tmp_path / "inside.toml"
    inside.write_text(config["data"]["ring.toml"])
    told = configure(NodeOptions(Path(), "", ""), read_ring_file(inside), "ring-1")
    assert (told.listen, told.next, told.advertise) == (
        "tcp://0.0.0.0:5600",
        "tcp://ring-0.ring:5600",
        "tcp://ring-1.ring:5600",
    )
    assert (str(told.shard), str(told.keys)) == ("/var/lib/ring/shards/stage-1", "/etc/ring/keys/ring-1")
    assert (told.threads, told.kv_memory) == (4, 2 << 30)
    assert read_ring_file(inside).layers == "0-9,10-27"


def test_the_init_containers_commands(file: Path, tmp_path: Path) -> None:
    """The shell lines of the pod, in a folder instead of the image."""
    *_, pods = load(deploy(file, "kubernetes") / "ring.yaml")
    keys, fetch = (container["command"][2] for container in pods["spec"]["template"]["spec"]["initContainers"])
    done = CliRunner().invoke(app, ["keys", "new", str(tmp_path / "made"), "--node", "ring-0", "--node", "ring-1"])
    assert done.exit_code == 0
    for folder in ("secret", "keys", "shards/stage-1"):
        (tmp_path / folder).mkdir(parents=True)
    subprocess.run(["tar", "-C", str(tmp_path / "made"), "-cf", str(tmp_path / "secret" / "ring-1.tar"), "ring-1"], check=True)
    environment = os.environ | {"POD": "ring-1"}
    keys = keys.replace("/run/ring-keys", f"{tmp_path}/secret").replace("/etc/ring/keys", f"{tmp_path}/keys")
    subprocess.run(["sh", "-c", keys], env=environment, check=True)
    done = CliRunner().invoke(app, ["keys", "show", str(tmp_path / "keys" / "ring-1")])
    assert done.exit_code == 0 and "ring-1 (this machine)" in done.stdout
    fetch = fetch.replace("/var/lib/ring/shards", f"{tmp_path}/shards").replace("exec ring fetch", "echo fetch")
    assert (
        "fetch --config"
        in subprocess.run(["sh", "-c", fetch], env=environment, capture_output=True, text=True, check=True).stdout
    )
    (tmp_path / "shards" / "stage-1" / "shard.json").touch()
    assert subprocess.run(["sh", "-c", fetch], env=environment, capture_output=True, text=True, check=True).stdout == ""


@pytest.mark.parametrize(
    ("kind", "old", "new", "says"),
    [
        ("systemd", 'keys = "ring-keys"', "", "names no keys"),
        ("kubernetes", "Qwen/Qwen2-7B-Instruct", "/models/qwen", "which pods do not have"),
    ],
)
def test_what_could_not_run_is_refused(file: Path, kind: str, old: str, new: str, says: str) -> None:
    file.write_text(GOOD.replace(old, new))
    done = CliRunner().invoke(app, ["deploy", kind, "--config", str(file), "--out", str(file.parent / "out")])
    assert done.exit_code == 1 and says in done.output
    assert not (file.parent / "out").exists()


def test_changed_files_are_not_lost(file: Path) -> None:
    out = deploy(file, "systemd")
    (out / "beta" / "ring-node.service").write_text("mine")
    arguments = ["deploy", "systemd", "--config", str(file), "--out", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1 and "--force" in done.output
    assert (out / "beta" / "ring-node.service").read_text() == "mine"
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
