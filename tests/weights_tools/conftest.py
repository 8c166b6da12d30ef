"""Small random checkpoints, saved the way people save them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from weights_tools import remote

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 4, "n_embd": 32, "n_head": 2, "n_positions": 64},
    "llama": {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2},
    "qwen3_moe": {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "mixtral": {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_local_experts": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
}

Save = Callable[..., Path]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that does not wait long for a Hub that is broken on purpose."""
    monkeypatch.setattr(remote, "WAIT_S", 0.001)
    monkeypatch.setattr(remote, "STALL_S", 0.5)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save a random checkpoint of a model type; returns its folder."""

    def save_checkpoint(
        model_type: str = "llama", file_size: str = "1GB", dtype: torch.dtype = torch.float32, **fields: Any
    ) -> Path:
        config = AutoConfig.for_model(model_type, vocab_size=97, **{**SHAPES[model_type], **fields})
        torch.manual_seed(0)
        folder = tmp_path / "checkpoint"
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder, max_shard_size=file_size)
        return folder

    return save_checkpoint
