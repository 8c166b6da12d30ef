"""Small random checkpoints of the architectures that the tests claim, and what transformers says to a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from weights_tools.tiny import random_model

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2 = {"n_embd": 64, "n_layer": 5, "n_head": 4, "vocab_size": 300, "bos_token_id": None, "eos_token_id": None}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}

# Name: transformers' model type, and what differs from SMALL.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "llama": ("llama", SMALL | {"rope_parameters": LLAMA3_ROPE, "attention_bias": True}),
    "llama-tied-yarn": ("llama", SMALL | {"rope_parameters": YARN_ROPE, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", SMALL),
    "qwen3": ("qwen3", SMALL | {"head_dim": 32, "tie_word_embeddings": True}),
    "mistral": ("mistral", SMALL | {"sliding_window": 24}),
}


def make_checkpoint(folder: Path, name: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Save a random checkpoint whose every layer and position matters to the logits."""
    model_type, fields = MODELS[name]
    config = CONFIG_MAPPING[model_type](**(fields | changes))
    random_model(config, seed).save_pretrained(folder)
    return folder


def generate(checkpoint: Path, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """What `transformers.generate()` answers, greedily in float32, each prompt alone."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0
        )
        answers.append(whole[0, len(prompt) :].tolist())
    return answers


def ragged_prompts(count: int, longest: int, vocabulary: int = 300, seed: int = 1) -> list[list[int]]:
    """Random prompts of very different lengths; the first is the longest."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [longest, *torch.randint(1, 40, (count - 1,), generator=generator).tolist()]
    return [torch.randint(1, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text())
