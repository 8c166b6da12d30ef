"""What is fetched is what a split would have made, and no more is asked for than that takes."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.e2e.spawn import Node
from tests.weights_tools.conftest import Save
from tests.weights_tools.fetching import BIG, content, get, own_bytes, planned
from tests.weights_tools.hub import COMMIT, REPO, Hub
from weights_tools import remote
from weights_tools.checkpoint import Checkpoint, CheckpointError
from weights_tools.fetch import fetch
from weights_tools.partition import PartitionError
from weights_tools.place import SplitError
from weights_tools.pocket import path as pocket_path
from weights_tools.shard import WEIGHTS, read_manifest
from weights_tools.split import split

pytestmark = pytest.mark.usefixtures("hasty")


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


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_planned_cut(save: Save, tmp_path: Path, dtype: str) -> None:
    folder = save(file_size="30KB")
    plan = planned(folder, tmp_path / "plan.json", [(0, 1), (1, 4)], dtype)
    split(str(folder), tmp_path / "split", plan=plan)
    with Hub(folder) as hub:
        for stage in range(2):
            fetched = get(hub, tmp_path / "out", stage, plan=plan)
            assert content(fetched.folder) == content(tmp_path / "split" / f"stage-{stage}")
        assert fetched.manifest.first_layer == 1 and fetched.manifest.dtype == dtype
        with pytest.raises(SplitError, match=f"is a plan for {dtype}, not for bfloat16"):
            get(hub, tmp_path / "other", 0, plan=plan, dtype="bfloat16")
        with pytest.raises(SplitError, match="no stage 2 of 2"):
            get(hub, tmp_path / "other", 2, plan=plan)
    with Hub(save("gpt2")) as hub, pytest.raises(SplitError, match=r"the plan is for checkpoint .*this is a gpt2 with 4"):
        get(hub, tmp_path / "other", 0, plan=plan)
    assert not (tmp_path / "other").exists()


RING = """
model = "{model}"
dtype = "bfloat16"
[[machines]]
name = "alpha"
stage = 0
address = "tcp://alpha:5600"
layers = "0-2"
[[machines]]
name = "beta"
stage = 1
address = "tcp://beta:5600"
layers = "3"
"""


def test_one_ring_file_for_split_and_fetch(save: Save, tmp_path: Path) -> None:
    """Both take model, cut, dtype and place from it, and write the same."""
    folder = save(file_size="30KB")
    for place, model in (("split", str(folder)), ("fetch", REPO)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "ring.toml").write_text(RING.format(model=model))
    assert Node(["split", "--config", str(tmp_path / "split" / "ring.toml")], tmp_path / "log").wait(60) == 0
    with Hub(folder) as hub:
        for name in ("alpha", "beta"):
            command = ["fetch", "--config", str(tmp_path / "fetch" / "ring.toml"), "--name", name, "--endpoint", hub.endpoint]
            assert Node(command, tmp_path / "log").wait(60) == 0
    for stage, layers in enumerate(((0, 3), (3, 4))):
        shards = [tmp_path / place / "shards" / f"stage-{stage}" for place in ("split", "fetch")]
        assert content(shards[0]) == content(shards[1])
        manifest = read_manifest(shards[0])
        assert (manifest.first_layer, manifest.end_layer, manifest.dtype) == (*layers, "bfloat16")


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
