"""What a model costs, from its config.json alone: bytes of every layer, of embedding and head, of a token's KV cache."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import msgspec

from weights_tools.folder import CheckpointError, model_name, read_json, summarize

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
"""Of a number in a weight. With int8 all else is bfloat16."""
MOST = {
    "num_hidden_layers": 1024,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "vocab_size": 1 << 27,
}
"""Figures beyond these are a mistake, and would take memory and hours."""
SAID_AS = {"num_hidden_layers": ("n_layer", "n_layers", "num_layers"), "hidden_size": ("n_embd", "n_embed", "d_model")}
"""What every config says, in one way or another."""


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
    path = find_config(source)
    raw, name = read_json(path), model_name(path.parent)
    if "quantization_config" in raw:
        raise CheckpointError(f"{source} is quantized, which a ring cannot serve; use the unquantized checkpoint")
    check_figures(raw, source)
    from weights_tools.formulas import dense_facts, read_dense

    if (dense := read_dense(raw)) is not None:
        return dense_facts(dense, name, choose(dtype, dense.dtype or dense.torch_dtype))
    from weights_tools.checkpoint import load_config  # torch and transformers: seconds
    from weights_tools.frame_facts import frame_facts
    from weights_tools.skeleton import hush_transformers

    hush_transformers()
    config = load_config(path.parent)
    check_figures({figure: getattr(config, figure, None) for figure in MOST}, source)  # whatever they are called in the file
    if not config.sub_configs:
        check_said(raw, config.attribute_map, source)
    return frame_facts(config, name, choose(dtype, getattr(config, "dtype", None)))


def find_config(source: str) -> Path:
    """A checkpoint's config.json, downloaded if need be."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path / "config.json"
    if path.exists() and path.name != "config.json":
        raise CheckpointError(f"{source} is a file; give a checkpoint's folder, its config.json, or its name on the Hub")
    return path if path.exists() else fetch_config(source)


def fetch_config(name: str) -> Path:
    """Download a repository's config.json, and nothing else."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII):
        raise CheckpointError(f"there is no {name}; give a checkpoint's folder, its config.json, or its name on the Hub")
    import huggingface_hub

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what matters is said below, in a sentence
    try:
        return Path(huggingface_hub.hf_hub_download(name, "config.json"))
    except Exception as error:  # the Hub's client fails in many ways; all mean the same here
        why = summarize(error)
        raise CheckpointError(f"'{name}' is no local folder, and its config.json cannot be downloaded ({why})") from None


def check_figures(config: dict[str, Any], source: str) -> None:
    """Raises CheckpointError for figures that are no model's."""
    for name, most in MOST.items():
        value = config.get(name)
        if isinstance(value, int | float) and not 0 < value <= most:
            raise CheckpointError(f"{source} says {name} = {value:,}, and a model has 1 to {most:,}; check its config.json")
    heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        raise CheckpointError(f"{source} says {heads} attention heads share {kv_heads} KV heads evenly; check its config.json")


def check_said(raw: dict[str, Any], names: dict[str, str], source: str) -> None:
    """Raises CheckpointError where transformers would fill in a size of its own; `names` are those of the architecture."""
    for name, others in SAID_AS.items():
        if not {name, names.get(name), *others} & raw.keys():
            raise CheckpointError(f"{source} does not say {name}; check its config.json")


def choose(asked: str | None, stored: object) -> str:
    """The dtype to plan for."""
    chosen = asked or str(stored or "float32").removeprefix("torch.")
    if chosen not in ITEM_BYTES:
        raise CheckpointError(f"'{chosen}' is no dtype to serve in; choose {', '.join(ITEM_BYTES)} with --dtype")
    return chosen
