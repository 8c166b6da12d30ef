from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from tests.weights_tools.conftest import Save
from weights_tools.checkpoint import INDEX, SINGLE, Checkpoint, CheckpointError, fingerprint, resolve
from weights_tools.tensorfile import read_header


def write_file(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"{", b"", "no safetensors file"),
        (b"[" * 5000, b"", "no safetensors file"),
        ({"a": {"dtype": "F32"}}, b"", "no safetensors file"),
        ({"a": entry(0, 8, [2])}, b"1234", "truncated.*'a'"),
        ({"a": entry(0, 8, [2])}, b"123456789", "1 bytes after"),
        ({"a": entry(0, 8, [3])}, b"12345678", "contradicts itself at 'a'"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12), "contradicts itself at 'b'"),
        ({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, bytes(4), "contradicts itself at 'b'"),
        ({"a": entry(0, 4, [-1])}, bytes(4), "no safetensors file"),
        ({"a": entry(0, 4, [1], "X9")}, bytes(4), "X9"),
    ],
)
def test_bad_headers(tmp_path: Path, header: Any, data: bytes, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_header(write_file(tmp_path / "bad.safetensors", header, data))


@pytest.mark.parametrize("content", [b"", b"1234", (1 << 40).to_bytes(8, "little"), (99).to_bytes(8, "little")])
def test_no_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"truncated|no safetensors file"):
        read_header(tmp_path / "bad")


def test_truncated_file_is_named(save: Save) -> None:
    folder = save(file_size="40KB")
    file = max(folder.glob("model-*.safetensors"))
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=f"{file.name} is truncated"):
        Checkpoint(folder)


def test_missing_file_of_the_index(save: Save) -> None:
    folder = save(file_size="40KB")
    file = max(folder.glob("model-*.safetensors"))
    file.unlink()
    with pytest.raises(CheckpointError, match=f"lacks {file.name}"):
        Checkpoint(folder)


def test_tensor_in_two_files(save: Save) -> None:
    folder = save(file_size="40KB")
    first, *_, last = sorted(folder.glob("model-*.safetensors"))
    last.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match=f"is in both {first.name} and {last.name}"):
        Checkpoint(folder)


@pytest.mark.parametrize("value", ["../model.safetensors", "/etc/passwd", 3])
def test_index_that_leaves_its_folder(save: Save, value: object) -> None:
    folder = save()
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": value}}))
    with pytest.raises(CheckpointError, match="does not say which file"):
        Checkpoint(folder)


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Checkpoint(tmp_path)


def test_broken_config(save: Save) -> None:
    folder = save()
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no JSON"):
        Checkpoint(folder)


def test_unknown_architecture(save: Save) -> None:
    folder = save()
    edit_config(folder, model_type="never-heard-of")
    with pytest.raises(CheckpointError, match="no config that transformers knows"):
        Checkpoint(folder)


def test_quantized(save: Save) -> None:
    folder = save()
    edit_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="is quantized"):
        Checkpoint(folder)


@pytest.mark.parametrize(("name", "says"), [("pytorch_model.bin", "pickle"), ("model.gguf", "GGUF"), ("x", "neither")])
def test_no_safetensors(save: Save, name: str, says: str) -> None:
    folder = save()
    (folder / SINGLE).rename(folder / name)
    with pytest.raises(CheckpointError, match=says):
        Checkpoint(folder)


def test_resolve(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        resolve(str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="there is no folder"):
        resolve(str(tmp_path / "absent"))


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("Name or service not known.\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"^'no/such' is no local folder.*\(Name or service not known\)") as caught:
        resolve("no/such")
    assert "\n" not in str(caught.value)


def test_hub_cache_gives_the_models_name(save: Save, tmp_path: Path) -> None:
    folder = tmp_path / "models--Qwen--Qwen2-7B" / "snapshots" / "abc"
    folder.parent.mkdir(parents=True)
    save().rename(folder)
    assert Checkpoint(folder).name == "Qwen2-7B"


def test_fingerprint(save: Save) -> None:
    folder = save(tie_word_embeddings=False)
    checkpoint = Checkpoint(folder)
    before = fingerprint(checkpoint)
    assert before == fingerprint(checkpoint, "float32") != fingerprint(checkpoint, "bfloat16")
    tensor = checkpoint.tensors["model.layers.3.mlp.up_proj.weight"]
    with (folder / SINGLE).open("r+b") as file:
        file.seek(tensor.offset + tensor.bytes // 2)
        file.write(b"\x01")
    assert fingerprint(Checkpoint(folder)) != before


def test_fingerprint_does_not_depend_on_files(save: Save) -> None:
    whole = fingerprint(Checkpoint(save()))
    folder = save(file_size="40KB")
    (folder / SINGLE).unlink()
    assert len({tensor.file for tensor in Checkpoint(folder).tensors.values()}) > 1
    assert fingerprint(Checkpoint(folder)) == whole
