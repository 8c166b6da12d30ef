"""The facts of the most usual dense models by formula, to the byte what transformers' modules would say: a plan for them
needs neither torch nor transformers, which take seconds to import.

A config with anything unusual in it, or that leaves out what transformers would have to fill in, is none of these.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from weights_tools.facts import ITEM_BYTES, ModelFacts
from weights_tools.shard import SCALE_BYTES

Count = Annotated[int, msgspec.Meta(ge=1)]
UNUSUAL = {
    "attention_chunk_size", "kv_lora_rank", "layer_types", "moe_num_experts", "n_routed_experts", "num_experts",
    "num_local_experts", "text_config",
}  # fmt: skip


class Dense(msgspec.Struct, frozen=True):
    """What config.json says of a model of the Llama kind."""

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"]
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count
    max_position_embeddings: Count
    head_dim: Count | None = None
    hidden_act: Literal["silu"] = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: Literal[False] | msgspec.UnsetType = msgspec.UNSET
    sliding_window: Count | msgspec.UnsetType | None = msgspec.UNSET
    dtype: str | None = None
    torch_dtype: str | None = None


def read_dense(raw: dict[str, Any]) -> Dense | None:
    """The config of a model that the formulas describe; None for any other."""
    if UNUSUAL & raw.keys():
        return None
    try:
        dense = msgspec.convert(raw, Dense)
    except msgspec.ValidationError:
        return None
    kind, window, windowed = dense.model_type, dense.sliding_window, dense.use_sliding_window
    usual = {
        "llama": window is msgspec.UNSET and windowed is msgspec.UNSET,
        "mistral": window is not msgspec.UNSET and windowed is msgspec.UNSET,
        "qwen2": True,
        "qwen3": dense.head_dim is not None,
    }
    even = dense.hidden_size % dense.num_attention_heads == 0 == dense.num_attention_heads % dense.num_key_value_heads
    return dense if usual[kind] and even else None


def dense_facts(dense: Dense, name: str, dtype: str) -> ModelFacts:
    """Its facts, stored in `dtype`."""
    kind, hidden, item = dense.model_type, dense.hidden_size, max(2, ITEM_BYTES[dtype])
    head_dim = dense.head_dim or hidden // dense.num_attention_heads
    width, kv_width = dense.num_attention_heads * head_dim, dense.num_key_value_heads * head_dim
    biased = dense.attention_bias and kind in ("llama", "qwen3")

    def linear(rows: int, columns: int, bias: bool = False) -> int:
        weight = rows * (columns + SCALE_BYTES) if dtype == "int8" else rows * columns * item
        return weight + rows * item * bias

    attention = linear(width, hidden, biased or kind == "qwen2") + 2 * linear(kv_width, hidden, biased or kind == "qwen2")
    attention += linear(hidden, width, biased)
    mlp_bias = dense.mlp_bias and kind == "llama"
    mlp = 2 * linear(dense.intermediate_size, hidden, mlp_bias) + linear(hidden, dense.intermediate_size, mlp_bias)
    norms = (2 * hidden + (2 * head_dim if kind == "qwen3" else 0)) * item
    layers = dense.num_hidden_layers
    embedding = dense.vocab_size * hidden * item
    window = dense.sliding_window if kind == "mistral" and isinstance(dense.sliding_window, int) else None
    return ModelFacts(
        name=name,
        model_type=kind,
        dtype=dtype,
        layer_bytes=[attention + mlp + norms] * layers,
        expert_bytes=[0] * layers,
        experts=0,
        experts_used=0,
        kv_bytes=[2 * kv_width * item] * layers,
        windows=[window] * layers,
        head_bytes=linear(dense.vocab_size, hidden) + hidden * item,
        embedding_bytes=embedding,
        tied_bytes=embedding if dense.tie_word_embeddings and dtype != "int8" else 0,
        hidden_size=hidden,
        attention_width=width,
        vocabulary=dense.vocab_size,
        context=dense.max_position_embeddings,
    )
