"""A model's facts from transformers' own modules, built on the meta device: right to the byte for whatever can be split."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from weights_tools.facts import ITEM_BYTES, ModelFacts
from weights_tools.shard import SCALE_BYTES
from weights_tools.skeleton import build_frame, find_layers, hush_transformers, layer_of, linear_weights, linearize
from weights_tools.tiny import head_modules, random_model, shrink


def frame_facts(config: PreTrainedConfig, name: str, dtype: str) -> ModelFacts:
    """The facts of a model of this config, stored in `dtype`."""
    hush_transformers()
    frame = build_frame(config, torch.bfloat16 if dtype == "int8" else getattr(torch, dtype))
    path, layers = find_layers(frame)
    after = tuple(module + "." for module in head_modules(random_model(shrink(config))))
    layer_bytes, expert_bytes = [0] * len(layers), [0] * len(layers)
    head = embedding = 0
    tied: dict[str, str] = dict(getattr(frame, "all_tied_weights_keys", None) or {})
    sizes = parameter_bytes(frame)
    if dtype == "int8":
        quantize(frame, sizes, tied)
    for parameter, size in sizes.items():
        layer = layer_of(parameter, path)
        if layer is not None:
            layer_bytes[layer] += size
            if re.search(r"\bexperts\.", parameter) and "shared" not in parameter:
                expert_bytes[layer] += size
        elif parameter.startswith(after):
            head += size
        else:
            embedding += size
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    experts = first_number(config, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    used = first_number(config, "num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")
    return ModelFacts(
        name=name,
        model_type=config.model_type,
        dtype=dtype,
        layer_bytes=layer_bytes,
        expert_bytes=expert_bytes,
        experts=experts,
        experts_used=used or experts,
        kv_bytes=[kv_numbers(config) * max(2, ITEM_BYTES[dtype])] * len(layers),
        windows=windows(config, len(layers)),
        head_bytes=head,
        embedding_bytes=embedding,
        tied_bytes=sum(sizes[target] for target in tied if target in sizes and layer_of(target, path) is None),
        hidden_size=config.hidden_size,
        attention_width=heads * head_dim,
        vocabulary=config.vocab_size,
        context=first_number(config, "max_position_embeddings") or 1 << 20,
    )


def parameter_bytes(frame: PreTrainedModel) -> dict[str, int]:
    """Stored size of every parameter; what an architecture wants in float32 counts as that."""
    precise = frame._get_dtype_plan(frame.dtype)
    sizes = {}
    for name, tensor in frame.state_dict().items():
        item = tensor.dtype.itemsize
        for pattern, dtype in precise.items():
            if tensor.dtype.is_floating_point and re.search(pattern.replace("*", r"\d+"), name):
                item = dtype.itemsize
        sizes[name] = math.prod(tensor.shape) * item
    return sizes


def quantize(frame: PreTrainedModel, sizes: dict[str, int], tied: dict[str, str]) -> None:
    """Count linear layers as they are stored in int8, each row with its scale; a tied head is then a matrix of its own."""
    linearize(frame)
    shapes = {name: frame.get_parameter(name).shape for name in linear_weights(frame)}
    for name, (rows, columns) in shapes.items():
        if name not in tied.values() and sizes[name] == 2 * rows * columns:
            sizes[name] = rows * (columns + SCALE_BYTES)
            tied.pop(name, None)


def first_number(config: PreTrainedConfig, *names: str) -> int:
    """The first of these fields that the config has as a number; else 0."""
    for name in names:
        value: object = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 0


def kv_numbers(config: PreTrainedConfig) -> int:
    """Numbers that a layer caches for a token: keys and values of every KV head.

    DeepSeek's compressed attention is cached uncompressed, as transformers' modules hand it over.
    """
    heads: int = config.num_attention_heads
    if getattr(config, "kv_lora_rank", None):
        return heads * int(config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
    kv_heads: int = first_number(config, "num_key_value_heads") or (1 if getattr(config, "multi_query", False) else heads)
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * kv_heads * head_dim


def windows(config: PreTrainedConfig, layers: int) -> list[int | None]:
    """How far back each layer attends, as the config says: a window for all, for some layers by their type, or none."""
    window = first_number(config, "sliding_window") or None
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    types: list[str] = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    chunk = first_number(config, "attention_chunk_size") or None
    found: dict[str, Any] = {"sliding_attention": window, "chunked_attention": chunk}
    return [found.get(kind) for kind in types[:layers]]
