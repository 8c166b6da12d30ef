"""What is read from a config alone is what the shards and the KV cache of real stages have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ring.stage.load import load_stage
from tests.weights_tools.conftest import SHAPES, Save
from weights_tools.checkpoint import Checkpoint, CheckpointError, load_config
from weights_tools.facts import read_facts
from weights_tools.formulas import dense_facts, read_dense
from weights_tools.frame_facts import frame_facts
from weights_tools.plan import Model
from weights_tools.split import split

LLAMA_405B = {
    "model_type": "llama",
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}
QWEN2_72B = {
    "model_type": "qwen2",
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "dtype": "bfloat16",
}


def config_only(folder: Path, fields: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_sizes_are_those_of_shards_and_caches(save: Save, tmp_path: Path, shape: str, dtype: str) -> None:
    folder = save(shape)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "config.json", alone)
    facts = read_facts(str(alone / "config.json"), dtype)
    costs = Model(Checkpoint(folder), dtype).costs()
    assert (facts.layer_bytes, facts.head_bytes, facts.embedding_bytes) == costs
    whole = split(str(folder), tmp_path / "one", stages=1, dtype=dtype)
    assert facts.bytes == whole[0].bytes
    first, second = split(str(folder), tmp_path / "two", layers=f"0,1-{facts.layers - 1}", dtype=dtype)
    assert first.bytes == facts.layer_bytes[0] + facts.embedding_bytes
    assert second.bytes == sum(facts.layer_bytes[1:]) + facts.head_bytes
    assert load_stage(tmp_path / "two" / "stage-1").measure_token_bytes() == sum(facts.kv_bytes[1:])


def test_experts(save: Save) -> None:
    facts = read_facts(str(save("mixtral")), "float32")
    assert (facts.experts, facts.experts_used) == (4, 2)
    assert all(0.2 < part / whole < 1 for part, whole in zip(facts.expert_bytes, facts.layer_bytes, strict=True))
    assert sum(read_facts(str(save("gpt2")), "float32").expert_bytes) == 0


@pytest.mark.parametrize(
    ("fields", "billions", "kv"), [(LLAMA_405B, 405.85, 2 * 8 * 128 * 2), (QWEN2_72B, 72.71, 2 * 8 * 128 * 2)]
)
def test_large_models_from_their_configs(tmp_path: Path, fields: dict[str, Any], billions: float, kv: int) -> None:
    facts = read_facts(config_only(tmp_path / "model", fields))
    assert facts.dtype == "bfloat16"
    assert facts.bytes / 2e9 == pytest.approx(billions, abs=0.01)
    assert set(facts.kv_bytes) == {kv} and set(facts.windows) == {None}


USUAL = {"hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 96}
VARIANTS: list[dict[str, Any]] = [
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 1, "tie_word_embeddings": True, "attention_bias": True},
    {"num_key_value_heads": 2, "head_dim": 24, "mlp_bias": True},
]


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize(
    "kind",
    [
        {"model_type": "llama"},
        {"model_type": "mistral", "sliding_window": 48},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 48, "max_window_layers": 1},
        {"model_type": "qwen3", "head_dim": 16},
    ],
    ids=lambda kind: str(kind["model_type"]),
)
def test_formulas_say_what_transformers_modules_say(tmp_path: Path, kind: dict[str, Any], fields: dict[str, Any]) -> None:
    config_only(tmp_path, raw := USUAL | {"max_position_embeddings": 256} | kind | fields)
    dense = read_dense(raw)
    assert dense is not None
    for dtype in ("float32", "bfloat16", "int8"):
        assert dense_facts(dense, "x", dtype) == frame_facts(load_config(tmp_path), "x", dtype)


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": None},
        {"num_key_value_heads": 3},
        {"hidden_size": 65},
        {"hidden_act": "gelu"},
        {"sliding_window": 16},
        {"model_type": "qwen2", "use_sliding_window": True},
        {"model_type": "qwen3"},
        {"model_type": "mistral"},
        {"model_type": "gpt2"},
        {"layer_types": ["full_attention"] * 3},
        {"vocab_size": "96"},
    ],
)
def test_what_is_unusual_is_left_to_transformers(change: dict[str, Any]) -> None:
    raw = USUAL | {"model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": 256}
    assert read_dense(raw) is not None and read_dense(raw | change) is None


def test_windows(tmp_path: Path) -> None:
    common = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 16}
    kinds = ["sliding_attention", "full_attention"] * 2
    gemma = {"model_type": "gemma2", "sliding_window": 99, "layer_types": kinds, "num_key_value_heads": 1, **common}
    facts = read_facts(config_only(tmp_path / "gemma", gemma))
    assert facts.windows == [99, None, 99, None]
    assert facts.kv_bytes == [2 * 16 * 4] * 4
    mistral = {"model_type": "mistral", "sliding_window": 64, "num_key_value_heads": 2, **common}
    assert read_facts(config_only(tmp_path / "mistral", mistral)).windows == [64] * 4
    unused = {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False, "num_key_value_heads": 2, **common}
    assert read_facts(config_only(tmp_path / "qwen2", unused)).windows == [None] * 4


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model_type": "nothing-known"}, "no config that transformers knows"),
        ({**LLAMA_405B, "quantization_config": {"bits": 4}}, "quantized"),
        ({**LLAMA_405B, "dtype": "float64"}, "choose float32, bfloat16, float16, int8"),
        ({**LLAMA_405B, "num_hidden_layers": 10**9}, "a model has 1 to 1,024"),
        ({"model_type": "gpt2", "n_embd": -64}, "says hidden_size = -64"),
        ({"model_type": "gpt2", "n_embd": 64}, "does not say num_hidden_layers"),
        ({**LLAMA_405B, "num_key_value_heads": 96}, "128 attention heads share 96 KV heads"),
        ({**LLAMA_405B, "vocab_size": "many"}, "vocab_size.*: TypeError"),
    ],
)
def test_configs_that_cannot_be_planned(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        read_facts(config_only(tmp_path / "model", fields))


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no"):
        read_facts(str(tmp_path / "nowhere"))
    (tmp_path / "weights.bin").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        read_facts(str(tmp_path / "weights.bin"))
