from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tests.weights_tools.conftest import Save
from weights_tools.checkpoint import Checkpoint, CheckpointError, fingerprint
from weights_tools.partition import PartitionError
from weights_tools.place import SplitError
from weights_tools.shard import WEIGHTS, Manifest, ShardError, read_manifest
from weights_tools.skeleton import Unservable, find_layers, layer_of, rename_layer
from weights_tools.split import split
from weights_tools.verify import verify


def check(folder: Path, out: Path, manifests: list[Manifest], dtype: torch.dtype) -> None:
    """Every stored tensor equals the whole model's to the bit, and together they are all of it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    layers_path, _ = find_layers(model)
    turned = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, Conv1D)}
    expected: dict[str, Tensor] = {name: t.t() if name in turned else t for name, t in model.state_dict().items()}
    seen: set[str] = set()
    for stage, manifest in enumerate(manifests):
        shard = out / f"stage-{stage}"
        assert read_manifest(shard) == manifest == verify(shard)
        tensors = load_file(shard / WEIGHTS)
        assert set(tensors) == set(manifest.tensors)
        for local in [*tensors, *manifest.tied]:
            name = rename_layer(local, layers_path, -manifest.first_layer)
            stored = tensors[manifest.tied.get(local, local)]
            assert stored.dtype == expected[name].dtype, name
            assert torch.equal(stored, expected[name]), name
            layer = layer_of(name, layers_path)
            assert layer is None or manifest.first_layer <= layer < manifest.end_layer
            seen.add(name)
    assert seen == set(expected)


CASES = [
    ("gpt2", True, torch.float32),
    ("gpt2", False, torch.bfloat16),
    ("llama", True, torch.float32),
    ("llama", False, torch.float16),
    ("qwen3_moe", False, torch.float32),
    ("mixtral", False, torch.bfloat16),
]


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize(("model_type", "tied", "dtype"), CASES)
def test_stages_equal_the_whole(
    save: Save, tmp_path: Path, model_type: str, tied: bool, dtype: torch.dtype, stages: int
) -> None:
    folder = save(model_type, file_size="30KB", tie_word_embeddings=tied)
    manifests = split(str(folder), tmp_path / "out", stages=stages, dtype=str(dtype).removeprefix("torch."))
    check(folder, tmp_path / "out", manifests, dtype)
    assert bool(manifests[0].tied) == (tied and stages == 1)


def test_unprefixed_names(save: Save, tmp_path: Path) -> None:
    """GPT-2's own checkpoint says `h.0.…` and keeps its masks."""
    folder = save("gpt2")
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(folder / WEIGHTS).items()}
    tensors |= {f"h.{k}.attn.bias": torch.ones(1, 1, 4, 4) for k in range(4)}
    save_file(tensors, folder / WEIGHTS)
    check(folder, tmp_path / "out", split(str(folder), tmp_path / "out", stages=2), torch.float32)


def test_keeps_the_checkpoints_dtype_and_can_be_opened(save: Save, tmp_path: Path) -> None:
    (manifest,) = split(str(save(dtype=torch.bfloat16)), tmp_path / "out", stages=1)
    assert manifest.dtype == "bfloat16"
    with safe_open(tmp_path / "out" / "stage-0" / WEIGHTS, "pt") as file:
        assert set(file.keys()) == set(manifest.tensors)


def test_a_tied_target_with_other_values_is_its_own(save: Save, tmp_path: Path) -> None:
    """transformers does not tie what the checkpoint stores twice and differently."""
    folder = save(tie_word_embeddings=True)
    tensors = load_file(folder / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / WEIGHTS)
    check(folder, tmp_path / "out", split(str(folder), tmp_path / "out", stages=2), torch.float32)


def test_a_tied_source_that_only_the_target_has(save: Save, tmp_path: Path) -> None:
    folder = save(tie_word_embeddings=True)
    tensors = load_file(folder / WEIGHTS)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / WEIGHTS)
    check(folder, tmp_path / "out", split(str(folder), tmp_path / "out", stages=2), torch.float32)


def test_fingerprint_is_known_before(save: Save, tmp_path: Path) -> None:
    checkpoint = Checkpoint(save())
    manifests = split(checkpoint, tmp_path / "out", layers="0,1-3", dtype="bfloat16")
    assert {manifest.fingerprint for manifest in manifests} == {fingerprint(checkpoint, "bfloat16")}
    assert [(m.first_layer, m.end_layer) for m in manifests] == [(0, 1), (1, 4)]


def test_missing_parameter(save: Save, tmp_path: Path) -> None:
    folder = save()
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"lacks 'model\.layers\.2\.mlp\.up_proj\.weight'"):
        split(str(folder), tmp_path / "out", stages=2)
    assert not (tmp_path / "out").exists()


def test_wrong_shape(save: Save, tmp_path: Path) -> None:
    folder = save()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 98}))
    with pytest.raises(CheckpointError, match="has shape"):
        split(str(folder), tmp_path / "out", stages=2)


def test_too_many_stages(save: Save, tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="5 stages need 5 layers"):
        split(str(save()), tmp_path / "out", stages=5)


def test_unknown_dtype(save: Save, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float32, bfloat16, float16 or int8"):
        split(str(save()), tmp_path / "out", stages=2, dtype="int4")


def test_proof_comes_first(save: Save, tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        assert not (tmp_path / "out").exists()
        raise Unservable("no")

    with pytest.raises(Unservable):
        split(str(save()), tmp_path / "out", stages=2, prove=refuse)
    assert not (tmp_path / "out").exists()


def test_force_replaces_all(save: Save, tmp_path: Path) -> None:
    folder, out = save(), tmp_path / "out"
    split(str(folder), out, stages=4)
    with pytest.raises(SplitError, match="--force"):
        split(str(folder), out, stages=2)
    assert len(split(str(folder), out, stages=2, force=True)) == 2
    assert sorted(path.name for path in out.iterdir()) == ["stage-0", "stage-1"]


def test_out_that_holds_something_else(save: Save, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").touch()
    with pytest.raises(SplitError, match=r"thesis\.txt"):
        split(str(save()), out, stages=2, force=True)
    assert (out / "thesis.txt").exists()


class Midway(Exception):
    pass


@pytest.mark.parametrize("error", [Midway, KeyboardInterrupt, SystemExit])
def test_an_error_midway_leaves_nothing(save: Save, tmp_path: Path, error: type[BaseException]) -> None:
    seen = 0

    def progress(size: int) -> None:
        nonlocal seen
        seen += size
        if seen > 40_000:
            raise error

    with pytest.raises(error):
        split(str(save()), tmp_path / "new" / "out", stages=3, progress=progress)
    assert not (tmp_path / "new").exists()


def test_an_error_while_moving_in_keeps_the_old_shards(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = save(), tmp_path / "out"
    before = split(str(folder), out, stages=3)
    rename, calls = Path.rename, 0

    def fail_fifth(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_fifth)
    with pytest.raises(KeyboardInterrupt):
        split(str(folder), out, stages=2, force=True)
    assert [read_manifest(out / f"stage-{k}") for k in range(3)] == before


def test_a_killed_split(save: Save, tmp_path: Path) -> None:
    folder, out = save(), tmp_path / "out"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom weights_tools.split import split\n"
        "done = 0\ndef progress(size):\n    global done\n    done += size\n"
        "    if done > 60_000: os.kill(os.getpid(), signal.SIGKILL)\n"
        "split(sys.argv[1], Path(sys.argv[2]), stages=3, progress=progress)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(out)], cwd=root, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    for stage in range(3):
        with pytest.raises(ShardError):
            read_manifest(out / f"stage-{stage}")
    split(str(folder), out, stages=3)
    assert sorted(path.name for path in out.iterdir()) == ["stage-0", "stage-1", "stage-2"]


def test_no_room(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage())
    with pytest.raises(SplitError, match="free space"):
        split(str(save()), tmp_path / "out", stages=2)
    assert not (tmp_path / "out").exists()


class _Usage:
    free = 1000


def test_disk_full_midway(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = save()
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SplitError, match="is full"):
        split(str(folder), tmp_path / "out", stages=2)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()


def test_verify_finds_one_flipped_bit(save: Save, tmp_path: Path) -> None:
    (manifest,) = split(str(save()), tmp_path / "out", stages=1)
    file = tmp_path / "out" / "stage-0" / WEIGHTS
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ShardError, match=f"'{list(manifest.tensors)[-1]}' does not have the checksum"):
        verify(tmp_path / "out" / "stage-0")


def test_verify_finds_a_cut_off_shard(save: Save, tmp_path: Path) -> None:
    split(str(save()), tmp_path / "out", stages=1)
    file = tmp_path / "out" / "stage-0" / WEIGHTS
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(ShardError, match=r"truncated.*copy the shard again"):
        verify(tmp_path / "out" / "stage-0")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen3_moe"])
def test_memory(tmp_path: Path, model_type: str) -> None:
    """Peak memory above the imports stays under one largest stored tensor + 200 MB."""
    shapes = {
        "gpt2": {"n_layer": 12, "n_embd": 1024, "n_head": 16, "vocab_size": 50000},
        "llama": {"num_hidden_layers": 12, "hidden_size": 1024, "intermediate_size": 3072, "vocab_size": 50000},
        "qwen3_moe": {"num_hidden_layers": 2, "hidden_size": 1024, "moe_intermediate_size": 768, "num_experts": 64},
    }
    make = (
        "import sys, json, torch\nfrom transformers import AutoConfig, AutoModelForCausalLM\n"
        "c = AutoConfig.for_model(sys.argv[1], **json.loads(sys.argv[2]))\n"
        "AutoModelForCausalLM.from_config(c, dtype=torch.float32).save_pretrained(sys.argv[3])"
    )
    measure = (
        "import resource, sys\nfrom pathlib import Path\nfrom weights_tools.split import split\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "base = peak()\nmanifests = split(sys.argv[1], Path(sys.argv[2]), stages=2)\n"
        "print(peak() - base, max(t.bytes for m in manifests for t in m.tensors.values()))"
    )
    root, folder, out = Path(__file__).parents[2], str(tmp_path / "big"), str(tmp_path / "out")
    subprocess.run([sys.executable, "-c", make, model_type, json.dumps(shapes[model_type]), folder], check=True)
    done = subprocess.run([sys.executable, "-c", measure, folder, out], check=True, capture_output=True, text=True, cwd=root)
    used, largest = map(int, done.stdout.split()[-2:])
    assert used < largest + 200e6, (used, largest)
