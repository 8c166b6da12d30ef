"""A ring with keys: friends are served, strangers learn nothing and disturb nothing."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from ring.answers import NoHead, RingError, WrongKeys
from ring.client import RingClient
from ring.keyring import make_keys
from ring.wire.clients import GetStatus, Status
from ring.wire.frames import encode
from ring.wire.keys import KeyFileError, load_keys
from ring.wire.messages import LinkDown, Release
from tests.e2e.harness import NodeRing
from tests.e2e.spawn import command as run
from tests.tui.drive import until_shown
from tui.app import Dashboard
from tui.feed import LiveFeed

NODES = ["alpha", "beta", "gamma"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder / "ours", NODES, ["laptop", "other"])
    make_keys(folder / "theirs", ["mallory"], [])
    return folder


class KeyedRing(NodeRing):
    """Every node with its own machine's folder of keys."""

    def __init__(self, shards: Path, keys: Path) -> None:
        super().__init__(shards, 3, keys=keys / "laptop")
        self.folders = [keys / name for name in NODES]

    def command(self, stage: int, shard: Path | None = None, next_stage: int | None = None) -> list[str]:
        return [*super().command(stage, shard, next_stage), "--keys", str(self.folders[stage])]


@pytest.fixture(scope="module")
def ring(llama: Path, keys: Path) -> Iterator[KeyedRing]:
    with KeyedRing(llama / "shards-3", keys / "ours") as ring:
        yield ring


async def complete(ring: NodeRing, folder: Path | None) -> list[int]:
    async with RingClient(ring.clients, timeout=1.0, keys=folder) as client:
        return (await client.complete(token_ids=[1, 2, 3], max_tokens=5)).token_ids


async def status(ring: NodeRing) -> Status:
    async with RingClient(ring.clients, keys=ring.keys) as client:
        return await client.status()


def test_friends_are_served(ring: KeyedRing) -> None:
    assert len(asyncio.run(complete(ring, ring.keys))) == 5


@pytest.mark.parametrize(
    ("who", "told"),
    [
        ("no key", "asks for keys; give --keys the folder"),
        ("another ring's key", "they are another ring's"),
        ("our ring's public key but a key of their own", "does not let in the key of"),
    ],
)
def test_strangers_are_not_and_learn_why(ring: KeyedRing, keys: Path, tmp_path: Path, who: str, told: str) -> None:
    folder: Path | None = None
    if who != "no key":
        folder = keys / "theirs" / "mallory"
    if who.startswith("our"):
        folder = tmp_path / "mallory"
        shutil.copytree(keys / "theirs" / "mallory", folder)
        shutil.copy2(keys / "ours" / "laptop" / "ring.key", folder / "ring.key")
        (folder / "ring.key_secret").unlink()
    with pytest.raises(WrongKeys, match=told):
        asyncio.run(complete(ring, folder))
    asked = run("status", "--head", ring.clients, *(["--keys", str(folder)] if folder else []))
    assert asked.returncode == 1 and told in asked.stderr and asked.stderr.count("\n") == 1
    asyncio.run(dashboard_says(ring, folder, "This head cannot be used", told))
    assert len(asyncio.run(complete(ring, ring.keys))) == 5


async def dashboard_says(ring: NodeRing, folder: Path | None, *words: str) -> None:
    app = Dashboard(LiveFeed(ring.clients, folder))
    async with app.run_test(size=(200, 40)) as pilot:
        await until_shown(pilot, *words)


def test_keys_for_a_ring_without_are_told_so(llama: Path, keys: Path) -> None:
    with NodeRing(llama / "shards-1", 1) as ring:
        with pytest.raises(WrongKeys, match="uses no keys"):
            asyncio.run(complete(ring, keys / "ours" / "laptop"))
        asyncio.run(dashboard_says(ring, keys / "ours" / "laptop", "This head cannot be used", "uses no keys"))


def test_what_is_asked_after_the_refusal_is_told_so_too(llama: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeroMQ has given the connection up by then, and takes no message for it."""

    async def later(client: RingClient) -> Status:
        while client._handshakes.refusal is None:
            await asyncio.sleep(0.01)
        return await client._get_status(60.0)

    with NodeRing(llama / "shards-1", 1) as ring:
        monkeypatch.setattr(RingClient, "status", later)
        with pytest.raises(WrongKeys, match="uses no keys"):
            asyncio.run(complete(ring, keys / "ours" / "laptop"))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_valid_messages_of_a_stranger_change_nothing(ring: KeyedRing, keys: Path, stage: int) -> None:
    """With the right epoch, and the incarnation of the right sender, as if it had read them off the wire."""
    before = asyncio.run(status(ring))
    sender = before.stages[stage - 1].info.incarnation
    context: zmq.Context[Any] = zmq.Context()
    for folder in (None, keys / "theirs" / "mallory"):
        with context.socket(zmq.PUSH) as stranger:
            if folder is not None:
                load_keys(folder).connect(stranger)
            stranger.linger = 0
            stranger.sndtimeo = 300
            stranger.connect(ring.address(stage))
            for message in (LinkDown(before.epoch, stage, sender), Release(before.epoch, [0, 1], sender)):
                stranger.send_multipart(encode(message))
        with context.socket(zmq.DEALER) as stranger:
            if folder is not None:
                load_keys(folder).connect(stranger)
            stranger.linger = 0
            stranger.connect(ring.clients)
            stranger.send(msgspec.msgpack.encode(GetStatus(1)))
            assert not stranger.poll(300), "a stranger is told nothing"
    context.term()
    assert len(asyncio.run(complete(ring, ring.keys))) == 5
    after = asyncio.run(status(ring))
    assert (after.epoch, after.state, after.stale) == (before.epoch, "ready", before.stale)
    assert [stage.refused for stage in after.stages] == [stage.refused for stage in before.stages]


def test_revoke_and_allow_count_from_the_next_connection_on(ring: KeyedRing, keys: Path) -> None:
    other, head = keys / "ours" / "other", str(keys / "ours" / "alpha")
    assert len(asyncio.run(complete(ring, other))) == 5
    assert run("keys", "revoke", head, "other").returncode == 0
    with pytest.raises(NoHead):
        asyncio.run(complete(ring, other))
    assert run("keys", "allow", head, "other", str(other / "me.key")).returncode == 0
    assert len(asyncio.run(complete(ring, other))) == 5
    assert "other" in run("keys", "show", head).stdout


def test_the_keys_command(tmp_path: Path) -> None:
    done = run("keys", "new", str(tmp_path / "keys"), "--node", "a", "--node", "b", "--client", "c")
    assert done.returncode == 0 and "copy this folder to b" in done.stdout
    for secret in (tmp_path / "keys").rglob("*.key_secret"):
        assert secret.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "keys" / "c" / "ring.key_secret").exists()
    again = run("keys", "new", str(tmp_path / "keys"), "--node", "a")
    assert again.returncode == 1 and "exists already" in again.stderr
    assert run("keys", "revoke", str(tmp_path / "keys" / "a"), "nobody").stderr.count("\n") == 1
    assert "40 characters" in run("keys", "allow", str(tmp_path / "keys" / "a"), "d", "rubbish").stderr
    (tmp_path / "keys" / "a" / "me.key_secret").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_keys(tmp_path / "keys" / "a")


def test_only_loopback_is_served_without_keys(llama: Path) -> None:
    shard, address = str(llama / "shards-1" / "stage-0"), "tcp://0.0.0.0:23"
    done = run("node", shard, "--listen", address, "--next", "tcp://127.0.0.1:24")
    assert done.returncode == 1
    assert "ring keys new" in done.stderr and "--insecure" in done.stderr and done.stderr.count("\n") == 1

    async def ask() -> None:
        async with RingClient("tcp://192.0.2.1:5555"):
            pass

    with pytest.raises(RingError, match="without keys anyone can read along"):
        asyncio.run(ask())


def test_doctor_finds_what_is_wrong(ring: KeyedRing, keys: Path, llama: Path) -> None:
    ours = ["--head", ring.clients, "--keys", str(keys / "ours" / "alpha")]
    shard = str(llama / "shards-3" / "stage-0")
    well = run("doctor", shard, "--listen", ring.address(0), "--next", ring.address(1), *ours, "--json")
    findings = msgspec.json.decode(well.stdout)
    assert well.returncode == 0, well.stdout
    assert {f["subject"] for f in findings} >= {"keys", "shard", "memory", "listen", "next", "ring", "stage 0", "stage 2"}
    theirs = ["--head", ring.clients, "--keys", str(keys / "theirs" / "mallory")]
    ill = run("doctor", str(llama), "--next", ring.address(1), *theirs, "--json")
    errors = {f["subject"]: f["fix"] for f in msgspec.json.decode(ill.stdout) if f["state"] == "error"}
    assert ill.returncode == 1
    assert set(errors) == {"shard", "next", "head"}
    assert "ring keys allow" in errors["next"]
    nobody = run("doctor", "--next", "tcp://127.0.0.1:9", "--head", "tcp://127.0.0.1:9")
    assert nobody.returncode == 1 and "nothing answers at tcp://127.0.0.1:9" in nobody.stdout
