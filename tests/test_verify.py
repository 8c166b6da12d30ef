"""`ring verify` says yes to a good ring of any architecture, and names what is wrong with a bad one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from ring.cli import app
from ring.stage.kv import KVCache
from ring.verify import TOLERANCE, verify_ring
from tests.models import MODELS, make_checkpoint
from weights_tools.compare import Difference
from weights_tools.shard import WEIGHTS, read_manifest, write_manifest
from weights_tools.split import split
from weights_tools.tensorfile import read_header


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    make_checkpoint(folder / "checkpoint")
    split(str(folder / "checkpoint"), folder / "shards", stages=3)
    return folder


@pytest.fixture
def ring(good: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(good / "shards", tmp_path / "shards")
    return tmp_path / "shards"


def stages(ring: Path) -> list[Path]:
    return [ring / f"stage-{k}" for k in range(3)]


def find(good: Path, folders: list[Path]) -> Difference:
    report = verify_ring(folders, str(good / "checkpoint"))
    assert report.difference is not None and not report.equal
    return report.difference


def rewrite(shard: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change a shard's tensors and make its manifest agree, as if the split itself had erred."""
    tensors = load_file(shard / WEIGHTS)
    change(tensors)
    save_file(tensors, shard / WEIGHTS, {"format": "pt"})
    manifest = read_manifest(shard)
    entries = {}
    for name, entry in manifest.tensors.items():
        tensor = tensors[name].contiguous()
        raw = tensor.view(-1).view(torch.uint8).numpy().tobytes()
        dtype = str(tensor.dtype).removeprefix("torch.")
        entries[name] = msgspec.structs.replace(entry, dtype=dtype, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
    write_manifest(shard, msgspec.structs.replace(manifest, tensors=entries))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_a_good_ring(tmp_path: Path, name: str, dtype: str) -> None:
    make_checkpoint(tmp_path / "checkpoint", name)
    split(str(tmp_path / "checkpoint"), tmp_path / "shards", stages=3, dtype=dtype)
    report = verify_ring([tmp_path / "shards"], str(tmp_path / "checkpoint"))
    assert report.equal and report.difference is None
    layers = len({entry.layer for entry in report.layers}) - 1
    assert len(report.layers) == layers + 2  # the embedding's output and the logits
    assert max(entry.difference for entry in report.layers) < TOLERANCE[dtype] / 2
    assert report.bytes == sum(read_manifest(folder).bytes for folder in (tmp_path / "shards").iterdir())


def test_one_flipped_bit(good: Path, ring: Path) -> None:
    header = read_header(ring / "stage-1" / WEIGHTS)
    name = "model.layers.1.mlp.up_proj.weight"
    with (ring / "stage-1" / WEIGHTS).open("r+b") as file:
        at = header[name].offset + 4 * (7 * 64 + 3)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    difference = find(good, stages(ring))
    layer = read_manifest(ring / "stage-1").first_layer + 1
    assert (difference.stage, difference.layer) == (1, layer)
    assert difference.tensor == f"model.layers.{layer}.mlp.up_proj.weight"
    assert "differs first at [7, 3]" in difference.what


def test_swapped_layers(good: Path, ring: Path) -> None:
    def swap(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("model.layers.0.")]:
            other = name.replace(".0.", ".1.", 1)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    rewrite(ring / "stage-1", swap)
    difference = find(good, stages(ring))
    first = read_manifest(ring / "stage-1").first_layer
    assert difference.layer == first and f"it is layer {first + 1}'s" in difference.what


def test_a_wrong_dtype(good: Path, ring: Path) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    rewrite(ring / "stage-2", lambda tensors: tensors.update({name: tensors[name].bfloat16()}))
    difference = find(good, stages(ring))
    assert difference.stage == 2 and "is bfloat16 in the shard, and should be float32" in difference.what


def test_values_that_went_through_another_dtype(good: Path, ring: Path) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    rewrite(ring / "stage-2", lambda tensors: tensors.update({name: tensors[name].bfloat16().float()}))
    assert find(good, stages(ring)).tensor == name.replace(".0.", f".{read_manifest(ring / 'stage-2').first_layer}.", 1)


def test_a_shard_of_another_dtype(good: Path, ring: Path, tmp_path: Path) -> None:
    split(str(good / "checkpoint"), tmp_path / "bf16", stages=3, dtype="bfloat16")
    difference = find(good, [ring / "stage-0", tmp_path / "bf16" / "stage-1", ring / "stage-2"])
    assert difference.stage == 1 and "bfloat16" in difference.what


def test_a_shard_of_another_model(good: Path, ring: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "other", seed=1)
    split(str(tmp_path / "other"), tmp_path / "others", stages=3)
    difference = find(good, [ring / "stage-0", ring / "stage-1", tmp_path / "others" / "stage-2"])
    assert difference.stage == 2 and "another model" in difference.what


def test_the_wrong_order_and_a_missing_stage(good: Path, ring: Path) -> None:
    one, two, three = stages(ring)
    assert "stages 1, 0, 2" in find(good, [two, one, three]).what
    assert find(good, [one, three]) == Difference("stage 1 of 3 is missing", 1)
    assert "stages 0, 1, 1, 2" in find(good, [one, two, two, three]).what


def test_a_cut_off_shard_and_a_missing_tensor(good: Path, ring: Path) -> None:
    raw = (ring / "stage-1" / WEIGHTS).read_bytes()
    (ring / "stage-1" / WEIGHTS).write_bytes(raw[:-1])
    assert "truncated" in find(good, stages(ring)).what
    (ring / "stage-1" / WEIGHTS).write_bytes(raw)
    manifest = read_manifest(ring / "stage-1")
    fewer = {name: entry for name, entry in manifest.tensors.items() if "q_proj" not in name}
    write_manifest(ring / "stage-1", msgspec.structs.replace(manifest, tensors=fewer))
    assert "is not in the shard" in find(good, stages(ring)).what


def test_a_stale_checksum(good: Path, ring: Path) -> None:
    manifest = read_manifest(ring / "stage-1")
    name, entry = next(iter(manifest.tensors.items()))
    tensors = manifest.tensors | {name: msgspec.structs.replace(entry, sha256="0" * 64)}
    write_manifest(ring / "stage-1", msgspec.structs.replace(manifest, tensors=tensors))
    assert "another checksum" in find(good, stages(ring)).what


def test_right_weights_and_a_wrong_computation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that a stage does not honour: the first layer that has one is named."""
    make_checkpoint(tmp_path / "checkpoint", "mistral")
    split(str(tmp_path / "checkpoint"), tmp_path / "shards", stages=3)
    mask, tokens = KVCache.mask, KVCache.tokens
    monkeypatch.setattr(KVCache, "mask", lambda self, start, count, first, window: mask(self, start, count, first, None))
    monkeypatch.setattr(KVCache, "tokens", lambda self, window: tokens(self, None))
    report = verify_ring([tmp_path / "shards"], str(tmp_path / "checkpoint"))
    assert report.difference is not None
    assert report.difference.layer == 0 and "the output of layer 0" in report.difference.what


def test_the_command(good: Path, ring: Path) -> None:
    run = CliRunner().invoke
    arguments = ["verify", str(ring), "--reference", str(good / "checkpoint")]
    done = run(app, arguments)
    assert done.exit_code == 0 and done.stdout.startswith("equal: 3 shards")
    shutil.rmtree(ring / "stage-2")
    done = run(app, [*arguments, "--json"])
    assert done.exit_code == 3
    assert json.loads(done.stdout)["difference"] == {
        "what": "stage 2 of 3 is missing",
        "stage": 2,
        "layer": None,
        "tensor": None,
    }
    done = run(app, ["verify", str(ring), "--reference", str(ring)])
    assert done.exit_code == 1
