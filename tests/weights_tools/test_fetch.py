from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.e2e.spawn import Node, context
from tests.weights_tools.conftest import Save
from tests.weights_tools.hub import COMMIT, REPO, Hub, Request
from weights_tools import remote, stream
from weights_tools.checkpoint import Checkpoint, CheckpointError
from weights_tools.fetch import Fetched, fetch
from weights_tools.partition import PartitionError
from weights_tools.place import SplitError
from weights_tools.plan import Model
from weights_tools.pocket import path as pocket_path
from weights_tools.shard import WEIGHTS
from weights_tools.split import choose_ranges, split

BIG: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAIT_S", 0.001)
    monkeypatch.setattr(remote, "STALL_S", 0.5)


def get(hub: Hub, out: Path, stage: int, **options: Any) -> Fetched:
    return fetch(REPO, out, endpoint=hub.endpoint, stage=stage, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def own_bytes(checkpoint: Checkpoint, stages: int, stage: int) -> int:
    """Bytes of the checkpoint's tensors that a stage is made from."""
    model = Model(checkpoint, checkpoint.dtype)
    plan = model.plan_stage(choose_ranges(model, stages, None), stage)
    names = {source.name for parameter in plan.stored.values() for source in parameter.sources}
    return sum(checkpoint.tensors[name].bytes for name in names)


CASES = [
    ("gpt2", True, torch.float32, "bfloat16"),
    ("gpt2", False, torch.bfloat16, "float32"),
    ("llama", True, torch.float32, None),
    ("llama", False, torch.float32, "bfloat16"),
    ("qwen3_moe", False, torch.bfloat16, "float32"),
    ("mixtral", False, torch.float32, None),
    ("mixtral", False, torch.bfloat16, "float16"),
    ("llama", True, torch.bfloat16, "int8"),
    ("gpt2", True, torch.float32, "int8"),
]


@pytest.mark.parametrize(
    ("model_type", "tied", "stored", "dtype", "block"),
    [*((*case, 0) for case in CASES), *((*case, remote.SMALL) for case in CASES[:2])],
)
def test_the_same_shards_as_a_split(
    save: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    tied: bool,
    stored: torch.dtype,
    dtype: str | None,
    block: int,
) -> None:
    monkeypatch.setattr(remote, "SMALL", block)
    folder = save(model_type, file_size="30KB", dtype=stored, tie_word_embeddings=tied)
    assert len(list(folder.glob("*.safetensors"))) > 2
    split(str(folder), tmp_path / "split", stages=3, dtype=dtype)
    with Hub(folder) as hub:
        for stage in range(3):
            fetched = get(hub, tmp_path / "out", stage, stages=3, dtype=dtype)
            assert content(fetched.folder) == content(tmp_path / "split" / f"stage-{stage}")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["stage-0", "stage-1", "stage-2"]


def test_tokenizer_and_single_file(tmp_path: Path) -> None:
    shutil.copytree(pocket_path(), tmp_path / "checkpoint")
    split(str(tmp_path / "checkpoint"), tmp_path / "split", stages=2)
    with Hub(tmp_path / "checkpoint") as hub:
        fetched = get(hub, tmp_path / "out", 0, stages=2)
        assert not any(request.file == "tokenizer.json" for request in hub.requests[:1])
        assert content(fetched.folder) == content(tmp_path / "split" / "stage-0")
        assert len(AutoTokenizer.from_pretrained(fetched.folder)) > 0
        before = len(hub.requests)
        fetched = get(hub, tmp_path / "out", 1, stages=2)
        assert not any("tokenizer" in request.file for request in hub.requests[before:])
        assert content(fetched.folder) == content(tmp_path / "split" / "stage-1")


@pytest.mark.parametrize("stages", [1, 3])
def test_a_tie_that_is_stored_twice(save: Save, tmp_path: Path, stages: int) -> None:
    folder = save(tie_word_embeddings=True)
    tensors = load_file(folder / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / WEIGHTS)
    split(str(folder), tmp_path / "split", stages=stages)
    with Hub(folder) as hub:
        for stage in range(stages):
            fetched = get(hub, tmp_path / "out", stage, stages=stages)
            assert content(fetched.folder) == content(tmp_path / "split" / f"stage-{stage}")
            assert bool(fetched.manifest.tied) == (stages == 1)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_only_a_stages_bytes_are_served(save: Save, tmp_path: Path, stage: int) -> None:
    folder = save(file_size="1MB", **BIG)
    checkpoint = Checkpoint(folder)
    headers = sum(
        min(tensor.offset for tensor in checkpoint.tensors.values() if tensor.file == file)
        for file in {tensor.file for tensor in checkpoint.tensors.values()}
    )
    small_files = sum(path.stat().st_size for path in folder.glob("*.json"))
    with Hub(folder) as hub:
        get(hub, tmp_path / "out", stage, stages=3)
        samples = 64 * len(checkpoint.tensors)
        assert hub.sent <= own_bytes(checkpoint, 3, stage) + headers + small_files + samples
        assert hub.sent < sum(tensor.bytes for tensor in checkpoint.tensors.values())
        assert {request.revision for request in hub.requests[1:]} == {COMMIT}


def test_small_tensors_side_by_side_come_together(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save()
    counts = []
    for small in (0, remote.SMALL):
        monkeypatch.setattr(remote, "SMALL", small)
        with Hub(folder) as hub:
            get(hub, tmp_path / str(small), 0, stages=1)
            counts.append(sum(request.end is not None and request.end - request.start > 64 for request in hub.requests))
    assert counts[1] == 2 < counts[0]  # the header, and all the rest


FAULTS = ["500", "429", "reset", "truncate", "stall", "shift", "more"]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(remote, "SMALL", 0)
    folder = save(file_size="1MB", **BIG)
    split(str(folder), tmp_path / "split", stages=3)
    every = 25 if fault == "stall" else 3
    with Hub(folder, fault=lambda request: fault if request.number % every == every - 1 else None) as hub:
        fetched = get(hub, tmp_path / "out", 1, stages=3)
        assert content(fetched.folder) == content(tmp_path / "split" / "stage-1")
        assert any(request.number % every == every - 1 for request in hub.requests)


def test_what_broke_off_is_not_asked_for_again(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SMALL", 0)
    folder = save(**BIG)
    with Hub(folder) as hub:
        get(hub, tmp_path / "whole", 1, stages=3)
        whole = hub.sent
    with Hub(folder, fault=lambda request: "truncate" if request.number % 2 else None) as hub:
        get(hub, tmp_path / "broken", 1, stages=3)
        assert hub.sent == whole


def test_a_server_that_stays_broken(save: Save, tmp_path: Path) -> None:
    with (
        Hub(save(), fault=lambda request: "500" if request.number > 5 else None) as hub,
        pytest.raises(CheckpointError, match=r"cannot be fetched from .*HTTP 500; 8 times"),
    ):
        get(hub, tmp_path / "out", 0, stages=2)
    with pytest.raises(CheckpointError, match=r"3 times in a row") as caught:
        get(hub, tmp_path / "out", 0, stages=2)  # nobody listens any more
    assert "\n" not in str(caught.value)


def test_a_server_that_ignores_ranges(save: Save, tmp_path: Path) -> None:
    with (
        Hub(save(), fault=lambda _: "ignore") as hub,
        pytest.raises(CheckpointError, match="sends all of"),
    ):
        get(hub, tmp_path / "out", 0, stages=2)


def test_a_server_that_says_no(save: Save, tmp_path: Path) -> None:
    with Hub(save(), fault=lambda _: "403") as hub, pytest.raises(CheckpointError, match="hf auth login"):
        get(hub, tmp_path / "out", 0, stages=2)


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changes_in_between(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etags: bool) -> None:
    """Without ETags only a change of size can be seen."""
    monkeypatch.setattr(remote, "SMALL", 0)
    folder = save(**BIG)
    tensors = load_file(folder / WEIGHTS)

    def change(request: Request) -> None:
        if request.number == 50:
            changed = tensors | {"extra": torch.zeros(3)} if not etags else {k: t + 1 for k, t in tensors.items()}
            save_file(changed, tmp_path / "new")
            (tmp_path / "new").rename(folder / WEIGHTS)

    with Hub(folder, fault=change, etags=etags) as hub, pytest.raises(CheckpointError, match="changed while it was fetched"):
        get(hub, tmp_path / "out", 1, stages=3)
    assert not (tmp_path / "out" / "stage-1").exists()
    split(str(folder), tmp_path / "split", stages=3)
    with Hub(folder) as hub:
        fetched = get(hub, tmp_path / "out", 1, stages=3)
        assert fetched.kept == 0
        assert content(fetched.folder) == content(tmp_path / "split" / "stage-1")


def test_a_truncated_file_is_named(save: Save, tmp_path: Path) -> None:
    folder = save()
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 1)
    with Hub(folder) as hub, pytest.raises(CheckpointError, match=rf"{REPO}/{WEIGHTS} is truncated"):
        get(hub, tmp_path / "out", 0, stages=2)


def test_a_small_file_is_checked_against_the_hubs_hash(save: Save, tmp_path: Path) -> None:
    with Hub(save(), fault=lambda _: "flip") as hub, pytest.raises(CheckpointError, match="its hash differs"):
        get(hub, tmp_path / "out", 0, stages=2)


WIDE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 4}


def fetch_in_steps(out: Path, endpoint: str, dtype: str | None) -> Fetched:
    """With a journal that has a line every 256 KiB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "STEP", 256 << 10)
        return fetch(REPO, out, stage=1, stages=2, endpoint=endpoint, dtype=dtype)


@pytest.mark.parametrize(
    ("model_type", "stored", "dtype", "fields"),
    [
        ("llama", torch.bfloat16, None, WIDE),
        ("llama", torch.float32, "bfloat16", WIDE),
        ("llama", torch.bfloat16, "int8", WIDE),
        ("mixtral", torch.bfloat16, "float32", WIDE | {"num_local_experts": 4, "intermediate_size": 1024}),
    ],
)
def test_killed_half_way_it_goes_on(
    save: Save, tmp_path: Path, model_type: str, stored: torch.dtype, dtype: str | None, fields: dict[str, Any]
) -> None:
    """`kill -9` when three quarters have been sent; the second run asks for little more than the rest."""
    folder = save(model_type, dtype=stored, file_size="20MB", **fields)
    needed = own_bytes(Checkpoint(folder), 2, 1)
    enough, dead = threading.Event(), threading.Event()

    def pace(sent: int) -> None:
        if not dead.is_set() and sent > needed * 3 // 4:
            enough.set()
            dead.wait(60)

    with Hub(folder, pace=pace) as hub:
        child = context.Process(target=fetch_in_steps, args=(tmp_path / "out", hub.endpoint, dtype), daemon=True)
        child.start()
        assert enough.wait(60)
        while (tmp_path / "out" / ".fetch-1" / "journal").read_bytes().count(b"\n") < 10:  # it is still reading what was sent
            assert child.is_alive()
            time.sleep(0.01)
        child.kill()
        child.join()
        dead.set()
        assert not (tmp_path / "out" / "stage-1").exists()
        hub.sent = 0
        fetched = fetch_in_steps(tmp_path / "out", hub.endpoint, dtype)
        assert fetched.kept > 0
        assert hub.sent < needed - fetched.kept // 4, (hub.sent, needed, fetched.kept)
    split(str(folder), tmp_path / "split", stages=2, dtype=dtype)
    assert content(tmp_path / "out" / "stage-1") == content(tmp_path / "split" / "stage-1")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stage-1"]


def interrupted(save: Save, out: Path) -> tuple[Path, Path]:
    """A fetch that the network ended after some tensors; the checkpoint, and the work that was kept."""
    folder = save(**BIG)
    with (
        Hub(folder, fault=lambda request: "403" if request.number > 52 else None) as hub,
        pytest.raises(CheckpointError),
    ):
        get(hub, out, 1, stages=2)
    return folder, out / ".fetch-1"


def test_what_was_kept_is_checked(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte that flipped on the disk, and a last line that was cut off, as when the power goes."""
    monkeypatch.setattr(remote, "SMALL", 0)
    folder, work = interrupted(save, tmp_path / "out")
    assert len((work / "journal").read_text().splitlines()) > 4
    raw = bytearray((work / "shard" / WEIGHTS).read_bytes())
    for at in range(4096, len(raw), 70_000):
        raw[at] ^= 1
    (work / "shard" / WEIGHTS).write_bytes(raw)
    with (work / "journal").open("ab") as file:
        file.write(b'{"tensor":"model.layers.1.')
    split(str(folder), tmp_path / "split", stages=2)
    with Hub(folder) as hub:
        fetched = get(hub, tmp_path / "out", 1, stages=2)
    assert content(fetched.folder) == content(tmp_path / "split" / "stage-1")


def test_what_was_kept_of_another_cut_is_not_used(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SMALL", 0)
    folder, _ = interrupted(save, tmp_path / "out")
    split(str(folder), tmp_path / "split", stages=3)
    with Hub(folder) as hub:
        fetched = get(hub, tmp_path / "out", 1, stages=3)
        assert fetched.kept == 0
    assert content(fetched.folder) == content(tmp_path / "split" / "stage-1")


def test_what_is_there_is_left_or_replaced(save: Save, tmp_path: Path) -> None:
    with Hub(save()) as hub:
        first = get(hub, tmp_path / "out", 1, stages=2)
        before = hub.sent
        again = get(hub, tmp_path / "out", 1, stages=2)
        assert again.manifest == first.manifest and again.kept == first.manifest.bytes
        assert hub.sent < 1.5 * before
        with pytest.raises(SplitError, match="--force"):
            get(hub, tmp_path / "out", 1, stages=2, dtype="bfloat16")
        other = get(hub, tmp_path / "out", 1, stages=2, dtype="bfloat16", force=True)
        assert other.manifest.dtype == "bfloat16"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stage-1"]


def test_only_one_at_a_time(save: Save, tmp_path: Path) -> None:
    """A second fetch of the same stage into the same folder is refused; of another stage it is not."""
    outcome: list[str] = []

    def second(hub: Hub) -> Callable[[int], None]:
        def run(_: int) -> None:
            if not outcome:
                outcome.append("")
                with pytest.raises(SplitError) as caught:
                    get(hub, tmp_path / "out", 1, stages=2)
                outcome[0] = str(caught.value)
                get(hub, tmp_path / "out", 0, stages=2)

        return run

    with Hub(save()) as hub:
        get(hub, tmp_path / "out", 1, stages=2, progress=second(hub))
    assert "another" in outcome[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["stage-0", "stage-1"]


def test_a_signed_address_is_used_again_without_the_token(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub sends to a store elsewhere; each file is looked up once, and the store never sees the token."""
    folder = save(file_size="40KB")
    expired: list[int] = []

    def expire(request: Request) -> str | None:
        large = request.end is not None and request.end - request.start > 64
        if large and request.number > 30 and not expired:
            expired.append(request.number)
            return "403"
        return None

    files = len(list(folder.glob("*.safetensors")))
    with Hub(folder, names_commits=False, fault=expire) as store, Hub(folder, store=store) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setattr(
            "weights_tools.remote.hf_hub_url",
            lambda name, file, revision, endpoint: f"{hub.endpoint}/{name}/resolve/{revision}/{file}",
        )
        fetch(REPO, tmp_path / "out", stage=1, stages=2)
        weights = [request for request in hub.requests if request.file.endswith(".safetensors")]
        assert len(weights) == files + len(expired) and expired
        assert all(request.headers.get("authorization") == "Bearer hf_secret" for request in hub.requests)
        assert not any("authorization" in request.headers for request in store.requests)


def test_another_endpoint_does_not_get_the_token(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Hub(save()) as hub:
        get(hub, tmp_path / "out", 1, stages=2)
        assert not any("authorization" in request.headers for request in hub.requests)


@pytest.mark.parametrize(
    ("name", "options", "error", "says"),
    [
        (".", {"stage": 0, "stages": 2}, CheckpointError, "ring split"),
        ("a/b/c", {"stage": 0, "stages": 2}, CheckpointError, "no name"),
        ("someone/else", {"stage": 0, "stages": 2}, CheckpointError, "check the name"),
        (REPO, {"stage": 2, "stages": 2}, SplitError, "no stage 2"),
        (REPO, {"stage": 0, "stages": 9}, PartitionError, "9 stages"),
        (REPO, {"stage": 0, "stages": 2, "endpoint": "here"}, CheckpointError, "https://HOST"),
    ],
)
def test_what_makes_no_sense(
    save: Save, tmp_path: Path, name: str, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with Hub(save()) as hub, pytest.raises(error, match=says):
        fetch(name, tmp_path / "out", **({"endpoint": hub.endpoint} | options))
    assert not (tmp_path / "out").exists()


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        fetch(REPO, tmp_path / "out", stage=0, stages=2)


def test_the_command(save: Save, tmp_path: Path) -> None:
    """The object that it prints; and Ctrl-C half-way, which ends it at once and keeps what came."""
    folder, reached = save(**BIG), threading.Event()
    with Hub(folder, pace=lambda sent: reached.set() if sent > 1_000_000 else None) as hub:
        command = ["fetch", REPO, "--stage", "1", "--stages", "2", "--endpoint", hub.endpoint, "--out", str(tmp_path / "out")]
        hub.fault = lambda request: "stall" if request.number > 52 else None
        interrupted = Node(command, tmp_path / "interrupted.log")
        assert reached.wait(60)
        interrupted.send_signal(signal.SIGINT)
        assert interrupted.wait() == 130
        assert (tmp_path / "interrupted.log").read_text() == "interrupted; the same command goes on from here\n"
        hub.fault = lambda _: None
        assert Node([*command, "--json"], tmp_path / "done.log").wait(60) == 0
        printed = json.loads((tmp_path / "done.log").read_text())
        assert printed["folder"] == str(tmp_path / "out" / "stage-1") and printed["manifest"]["stage"] == 1
        assert printed["received"] > 0 and printed["kept"] >= 0
