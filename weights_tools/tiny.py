"""A tiny random model of a given config: the same architecture with every width and the depth shrunk.

It stands in for the real one wherever only the shape of the computation matters: to see in which order a model uses
its modules, and to prove that a ring computes what the whole model does, in a second, whatever the checkpoint's size.
"""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from weights_tools.skeleton import Unservable, cut_config, find_layers

VOCABULARY = 199
WINDOW = 6  # shorter than the proof's prompts, so that a window that is not honoured shows
MIN_LAYERS = 4
MAX_HEAD_DIM = 16
MAX_EXPERTS = 16  # more than any router picks for a token


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of `config` with small widths and few layers; every field that changes the computation's shape is kept."""
    tiny = copy.deepcopy(config)
    cut_config(tiny, tiny.num_hidden_layers, 0, shrunk_depth(tiny))
    heads = getattr(tiny, "num_attention_heads", None)
    if not heads:
        raise Unservable(f"'{config.model_type}' has no attention heads; a ring needs attention with a KV cache")
    kv_heads = getattr(tiny, "num_key_value_heads", None) or heads
    hidden, head_dim = tiny.hidden_size, getattr(tiny, "head_dim", None) or tiny.hidden_size // heads
    new_dim = head_dim if rope_is_tied_to_heads(tiny) else min(head_dim, MAX_HEAD_DIM)
    new_kv_heads = min(kv_heads, 2)
    new_heads = new_kv_heads * min(max(heads // kv_heads, 1), 2)
    new_hidden = new_heads * new_dim
    resize(tiny, "num_attention_heads", new_heads)
    resize(tiny, "num_key_value_heads", new_kv_heads)
    resize(tiny, "hidden_size", new_hidden)
    resize(tiny, "head_dim", new_dim)
    resize(tiny, "vocab_size", VOCABULARY)
    for name in ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim"):
        resize(tiny, name, 2 * new_hidden)
    if getattr(tiny, "word_embed_proj_dim", None) == hidden:
        resize(tiny, "word_embed_proj_dim", new_hidden)
    if not (getattr(tiny, "n_group", None) or 1) > 1:
        for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
            resize(tiny, name, min(getattr(tiny, name, None) or 0, MAX_EXPERTS))
    for name in ("sliding_window", "attention_chunk_size"):
        resize(tiny, name, WINDOW)
    for name in [name for name in vars(tiny) if name.endswith("_token_id")]:
        resize(tiny, name, 0)
    return tiny


def resize(config: PreTrainedConfig, name: str, value: int) -> None:
    """Set a width that this config has; one that it lacks, or derives from others by itself, is left alone."""
    if isinstance(getattr(config, name, None), int):
        with contextlib.suppress(AttributeError):
            setattr(config, name, value)


def rope_is_tied_to_heads(config: PreTrainedConfig) -> bool:
    """Whether the config fixes rope widths or one factor for every pair of head dimensions, which a narrower head breaks."""
    rope = getattr(config, "rope_parameters", None) or {}
    fixed = any(hasattr(config, name) for name in ("rotary_dim", "qk_rope_head_dim"))
    return fixed or any(isinstance(value, list) for value in rope.values())


def shrunk_depth(config: PreTrainedConfig) -> int:
    """At least four layers (or all), and enough of them to hold one of each type."""
    types = getattr(config, "layer_types", None) or []
    depth: int = min(config.num_hidden_layers, MIN_LAYERS)
    while depth < len(types) and set(types[:depth]) != set(types):
        depth += 1
    return depth


def random_model(config: PreTrainedConfig, seed: int = 0, attention: str = "eager") -> PreTrainedModel:
    """A float32 model with weights drawn large enough that positions, windows and every layer change the logits.

    Raises:
        Unservable: the shrunken config cannot be built.
    """
    torch.manual_seed(seed)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )
    except Exception as error:
        raise Unservable(f"a tiny '{config.model_type}' to prove the cut with cannot be built: {error}") from error
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval()
    return model


def head_modules(model: PreTrainedModel) -> set[str]:
    """Paths of the modules that first run after the last layer: the final norm, the LM head and what stands between.

    Found by watching a forward pass, as the order in which a model lists its modules says nothing certain.
    """
    _, layers = find_layers(model)
    order: list[str] = []
    hooks = []

    def watch(path: str, module: nn.Module) -> None:
        hooks.append(module.register_forward_pre_hook(lambda *_: order.append(path)))

    for path, module in model.named_modules():
        watch(path, module)
    last = next(path for path, module in model.named_modules() if module is layers[-1])
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([[1, 2, 3]]))
    finally:
        for hook in hooks:
            hook.remove()
    if last not in order:
        raise Unservable(f"'{model.config.model_type}' does not run its last layer in a plain forward pass")
    at = order.index(last)
    return {path for path in order[at:] if path not in order[:at] and not path.startswith(last)}
