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

MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}

# More of them, which are run as stages in one process. Where tied embeddings would have a random model repeat its last
# token for ever, they are untied.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-linear": ("llama", SMALL | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "qwen2-window": ("qwen2", SMALL | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
    "mixtral": ("mixtral", SMALL | MOE),
    "qwen2_moe": ("qwen2_moe", SMALL | MOE | {"shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("qwen3_moe", SMALL | MOE | {"head_dim": 32}),
    "gemma": ("gemma", SMALL | {"head_dim": 32, "tie_word_embeddings": False}),
    "gemma2": (
        "gemma2",
        SMALL | {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32, "tie_word_embeddings": False},
    ),
    "gemma3": ("gemma3_text", SMALL | {"head_dim": 32, "sliding_window": 16, "tie_word_embeddings": False}),
    "phi": ("phi", SMALL),
    "phi3": ("phi3", SMALL | {"pad_token_id": 0, "sliding_window": 24}),
    "phimoe": ("phimoe", SMALL | MOE),
    "gpt_neox": ("gpt_neox", SMALL | {"tie_word_embeddings": False}),
    "gpt_oss": ("gpt_oss", SMALL | MOE | {"head_dim": 32, "sliding_window": 16}),
    "gpt_bigcode": ("gpt_bigcode", GPT2),
    "olmo": ("olmo", SMALL),
    "olmo2": ("olmo2", SMALL),
    "olmo3": ("olmo3", SMALL | {"sliding_window": 16}),
    "olmoe": ("olmoe", SMALL | MOE),
    "granite": (
        "granite",
        SMALL | {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.2, "attention_multiplier": 0.1},
    ),
    "granitemoe": ("granitemoe", SMALL | MOE),
    "starcoder2": ("starcoder2", SMALL | {"sliding_window": 24, "tie_word_embeddings": False}),
    "cohere": ("cohere", SMALL),
    "cohere2": ("cohere2", SMALL | {"sliding_window": 16}),
    "opt": ("opt", SMALL | {"ffn_dim": 96, "word_embed_proj_dim": 64, "tie_word_embeddings": False}),
    "stablelm": ("stablelm", SMALL),
    "smollm3": ("smollm3", SMALL),
    "glm": ("glm", SMALL),
    "glm4": ("glm4", SMALL),
    "glm4_moe": ("glm4_moe", SMALL | MOE),
    "ernie4_5": ("ernie4_5", SMALL),
    "exaone4": ("exaone4", SMALL),
    "nemotron": ("nemotron", SMALL),
    "seed_oss": ("seed_oss", SMALL),
    "arcee": ("arcee", SMALL),
    "minimax_m2": ("minimax_m2", SMALL | MOE),
}

# Model type: what the refusal says, as `ring split` prints it. Each is tried with transformers' own default config.
REFUSED = {
    "deepseek_v2": "cannot be served",
    "deepseek_v3": "cannot be served",
    "llama4_text": "gives other logits",
    "bloom": "gives other logits",
    "xglm": "gives other logits",
    "jetmoe": "gives other logits",
    "falcon": "bypasses transformers' attention interface",
    "gptj": "bypasses transformers' attention interface",
    "gpt_neo": "bypasses transformers' attention interface",
    "mpt": "cannot be served",
    "mamba": "has no attention heads",
    "mamba2": "has no attention heads",
    "rwkv": "has no attention heads",
    "jamba": "cannot be served",
    "bamba": "cannot be served",
    "nemotron_h": "cannot be served",
    "minimax": "cannot be served",
    "qwen3_next": "cannot be served",
    "bert": "bert",
}


def make_checkpoint(folder: Path, name: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """Save a random checkpoint whose every layer and position matters to the logits."""
    model_type, fields = (MODELS | MORE)[name]
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
