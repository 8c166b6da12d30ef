"""The bare frame of a model: transformers' own classes, built without memory, cut to a range of layers.

Both ends of a shard's life stand on it. The splitter asks which parameters exist and which stage each belongs to; the
node asks for a model with just its layers and fills in the tensors of its shard. Nothing of any architecture is
re-implemented, and no list of architectures is kept.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D


class Unservable(ValueError):
    """An architecture that a ring cannot serve; the message is one sentence that says why."""


def hush_transformers() -> None:
    """Keep transformers' warnings and progress bars off the user's terminal; what matters is said by us, in a sentence."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def build_frame(config: PreTrainedConfig, dtype: torch.dtype, attention: str = "eager") -> PreTrainedModel:
    """Build the whole model on the meta device: every module and shape, no weights.

    Layers are built at their true place and only then cut, so that whatever a layer derives from its own index (its
    window, its rope, its experts) is right on every stage.

    Raises:
        Unservable: transformers has no causal language model for this config, or cannot build it.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
    except KeyError as error:
        raise Unservable(f"the attention of '{config.model_type}' bypasses transformers' attention interface") from error
    except Exception as error:  # whatever an architecture's constructor raises, the user needs the sentence
        raise Unservable(f"transformers cannot build a '{config.model_type}' for text generation: {error}") from error
    model.eval()
    return model


def linearize(model: nn.Module) -> set[str]:
    """Replace GPT-2's Conv1D by the Linear that it is; returns the names of the weights that are thereby transposed.

    Conv1D keeps its weight as (in, out). As (out, in) the same product is up to twice as fast on a CPU.
    """
    transposed = set()
    for path, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            linear = nn.Linear(inputs, outputs, device=module.weight.device, dtype=module.weight.dtype)
            linear.weight.data = module.weight.data.t().contiguous()
            linear.bias.data = module.bias.data
            model.set_submodule(path, linear)
            transposed.add(f"{path}.weight")
    return transposed


def linear_weights(model: nn.Module) -> list[str]:
    """The names of the weights of linear layers."""
    return [f"{path}.weight" for path, module in model.named_modules() if type(module) in (nn.Linear, Conv1D)]


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The path and the list of the decoder layers.

    Raises:
        Unservable: no list of `num_hidden_layers` modules.
    """
    count = model.config.num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return path, module
    raise Unservable(f"'{model.config.model_type}' keeps its {count} layers in no list that could be cut")


def cut_layers(model: PreTrainedModel, start: int, end: int) -> None:
    """Keep layers `start` to `end - 1` only, renumbered from 0, and the same part of every per-layer list of the config."""
    path, layers = find_layers(model)
    count = len(layers)
    model.set_submodule(path, nn.ModuleList(layers[start:end]))
    for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
        cut_config(config, count, start, end)


def cut_config(config: Any, count: int, start: int, end: int) -> None:
    """Cut `num_hidden_layers` and every list with one entry a layer, in place."""
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == count and not name.endswith(("_token_id", "architectures")):
            object.__setattr__(config, name, value[start:end])
    config.num_hidden_layers = end - start


def rebuild_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute the buffers that no checkpoint holds (rope frequencies) from the config, by transformers itself."""
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # weights stay as they are
    for module in model.modules():
        meta = [(name, buffer) for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name, buffer in meta:
            module._buffers[name] = torch.empty_like(buffer, device=device)
        if meta:
            model._init_weights(module)


def layer_of(name: str, layers_path: str) -> int | None:
    """The layer that a parameter belongs to, or None for one outside the layers."""
    prefix = layers_path + "."
    return int(name[len(prefix) :].split(".", 1)[0]) if name.startswith(prefix) else None


def rename_layer(name: str, layers_path: str, offset: int) -> str:
    """A layer parameter's name with its number lowered by `offset`; any other name as it is."""
    layer = layer_of(name, layers_path)
    if layer is None:
        return name
    prefix = layers_path + "."
    return f"{prefix}{layer - offset}{name[len(prefix) + len(str(layer)) :]}"
