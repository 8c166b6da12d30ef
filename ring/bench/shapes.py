"""Models to measure on: the shapes of well-known ones with random weights, made once and kept in the cache."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ring.launch import cache_folder
from weights_tools.shard import holds_shards

NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", **NO_TOKENS},
    "gpt2-tiny": {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 8,
        "n_positions": 8192,
        "vocab_size": 512,
        **NO_TOKENS,
    },
    "llama-1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        **NO_TOKENS,
    },
}


class BenchError(ValueError):
    """An experiment that cannot be run; the message is one sentence."""


def checkpoint(shape: str, dtype: str) -> Path:
    """The folder of a checkpoint: `shape` names one of SHAPES, which is made on first use, or is a folder itself.

    Raises:
        BenchError: neither.
    """
    if Path(shape).is_dir():
        return Path(shape)
    if shape not in SHAPES:
        raise BenchError(f"'{shape}' is neither a checkpoint's folder nor one of {', '.join(SHAPES)}")
    digest = hashlib.sha256(repr(SHAPES[shape]).encode()).hexdigest()[:8]
    folder = cache_folder() / "bench" / f"{shape}-{dtype}-{digest}"
    if not (folder / "config.json").exists():
        make_random(SHAPES[shape], dtype, folder)
    return folder


def make_random(fields: dict[str, Any], dtype: str, folder: Path) -> None:
    """Save a model of random weights, initialised as transformers does, from seed 0."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**fields)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    partial.rename(folder)


def shards(source: Path, stages: int, dtype: str, say: Callable[[str], None], layers: str | None = None) -> Path:
    """The folder with a checkpoint's shards, split now unless it was before."""
    from weights_tools.checkpoint import Checkpoint, fingerprint
    from weights_tools.split import split

    opened = Checkpoint(source)
    name = fingerprint(opened, dtype)
    folder = cache_folder() / "bench" / f"{name[:16]}-{layers or stages}"
    if holds_shards(folder, stages, name):
        return folder
    say(f"splitting {source.name} over {stages} nodes as {dtype}")
    split(opened, folder, stages=stages, layers=layers, dtype=dtype, force=True)
    return folder
