"""What a model costs, from its config.json alone: bytes of every layer, of embedding and head, of a token's KV cache.

The sizes are those of transformers' own modules, built on the meta device, so they are the shards' own to the byte for
any architecture that can be split.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
"""Of a number in a weight. With int8 all else is bfloat16."""


class ModelFacts(msgspec.Struct, frozen=True):
    """Sizes in bytes, as stored in `dtype`; the lists have one entry a layer.

    `expert_bytes` is the part of a layer that lies in routed experts, of which a token uses `experts_used` of `experts`.
    `kv_bytes` is what one cached token takes, `windows` how many tokens back a layer attends (None: all). `head_bytes` is
    what follows the last layer (norm, LM head), `embedding_bytes` what comes before the first; when `tied` both share one
    matrix, which is stored once only where they are on the same machine. `attention_width` is heads times head size.
    """

    name: str
    model_type: str
    dtype: str
    layer_bytes: list[int]
    expert_bytes: list[int]
    experts: int
    experts_used: int
    kv_bytes: list[int]
    windows: list[int | None]
    head_bytes: int
    embedding_bytes: int
    tied_bytes: int
    hidden_size: int
    attention_width: int
    vocabulary: int
    context: int

    @property
    def layers(self) -> int:
        """How many."""
        return len(self.layer_bytes)

    @property
    def item_bytes(self) -> int:
        """Bytes of one number that travels or is cached."""
        return max(2, ITEM_BYTES[self.dtype])

    @property
    def bytes(self) -> int:
        """The whole model on one machine."""
        return sum(self.layer_bytes) + self.head_bytes + self.embedding_bytes - self.tied_bytes


def read_facts(source: str, dtype: str | None = None) -> ModelFacts:
    """The facts of a checkpoint's folder, a config.json, or a name on the Hub, of which only config.json is fetched.

    `dtype` None takes the one that the config names, else float32.

    Raises:
        CheckpointError, Unservable: each a sentence.
    """
    from weights_tools.checkpoint import SERVED_AS, CheckpointError

    config, name = find_config(source)
    stored = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    chosen = dtype or stored
    if chosen not in SERVED_AS:
        raise CheckpointError(f"'{chosen}' is no dtype to serve in; choose float32, bfloat16, float16 or int8 with --dtype")
    return facts_of(config, name, chosen)


def find_config(source: str) -> tuple[PreTrainedConfig, str]:
    """A checkpoint's config, and what to call it."""
    from weights_tools.checkpoint import CheckpointError, load_config, model_name, read_json

    path = Path(source).expanduser()
    if path.is_file() and path.name != "config.json":
        raise CheckpointError(f"{source} is a file; give a checkpoint's folder, its config.json, or its name on the Hub")
    if not path.exists():
        path = fetch_config(source)
    folder = path if path.is_dir() else path.parent
    if "quantization_config" in read_json(folder / "config.json"):
        raise CheckpointError(f"{source} is quantized, which a ring cannot serve; use the unquantized checkpoint")
    return load_config(folder), model_name(folder)


def fetch_config(name: str) -> Path:
    """Download a repository's config.json, and nothing else."""
    from weights_tools.checkpoint import CheckpointError, summarize

    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII):
        raise CheckpointError(f"there is no {name}; give a checkpoint's folder, its config.json, or its name on the Hub")
    import huggingface_hub

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what matters is said below, in a sentence
    try:
        return Path(huggingface_hub.hf_hub_download(name, "config.json"))
    except Exception as error:  # the Hub's client fails in many ways; all mean the same here
        why = summarize(error)
        raise CheckpointError(f"'{name}' is no local folder, and its config.json cannot be downloaded ({why})") from None


def facts_of(config: PreTrainedConfig, name: str, dtype: str) -> ModelFacts:
    """The facts of a model of this config, stored in `dtype`."""
    import torch

    from weights_tools.skeleton import build_frame, find_layers, hush_transformers, layer_of
    from weights_tools.tiny import head_modules, random_model, shrink

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
    from weights_tools.quantize import SCALE_BYTES
    from weights_tools.skeleton import linear_weights, linearize

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
