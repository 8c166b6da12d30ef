"""Which tensors of the checkpoint each parameter of the model is made from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.pytorch_utils import Conv1D

from weights_tools.checkpoint import Checkpoint, CheckpointError


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the checkpoint by its name there, and which of a converter's patterns that name fits."""

    name: str
    pattern: str


@dataclass(slots=True)
class Parameter:
    """One tensor of the whole model and how to make it.

    With a `converter` (transformers' own, which merges experts and the like) all `sources` are handed to it; otherwise
    there is one, stored as it is or `transposed`. `quantized` to int8, each row has the four bytes of its float32 scale
    at its end (see `quantize.py`).
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    sources: list[Source] = field(default_factory=list)
    converter: WeightConverter | None = None
    transposed: bool = False
    quantized: bool = False

    @property
    def bytes(self) -> int:
        """Stored size."""
        return math.prod(self.shape) * self.dtype.itemsize


def find_sources(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, Parameter]:
    """How the parameters of a model are made from a checkpoint, by transformers' own renaming rules.

    Tensors that the model has no place for (old masks, rope frequencies) are left out, as transformers leaves them.
    Parameters that the checkpoint does not have are left out too; some of those are tied to others.

    Raises:
        CheckpointError: a tensor of another shape than the model's.
    """
    state: dict[str, torch.Tensor] = model.state_dict()
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    made: dict[str, Parameter] = {}
    for name in sorted(checkpoint.tensors, key=dot_natural_key):
        prefix = model.base_model_prefix
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target not in state:
            continue
        if target not in made:
            made[target] = Parameter(target, tuple(state[target].shape), state[target].dtype)
            made[target].converter = by_pattern[pattern] if pattern is not None else None
        made[target].sources.append(Source(name, pattern or name))
    for parameter in list(made.values()):
        if parameter.converter is None:
            check_shape(parameter, checkpoint)
            continue
        # A converter may make several parameters from one group of tensors: the first is found, the others follow.
        first, *others = parameter.converter.target_patterns
        for other in (parameter.name.replace(first, pattern) for pattern in others):
            if other in state:
                made.setdefault(other, replace(parameter, name=other, shape=tuple(state[other].shape)))
    for path, module in model.named_modules():
        if isinstance(module, Conv1D) and f"{path}.weight" in made:
            parameter = made[f"{path}.weight"]
            parameter.transposed, parameter.shape = True, parameter.shape[::-1]
    keep_precise(model, made)
    return {name: made[name] for name in state if name in made}


def check_shape(parameter: Parameter, checkpoint: Checkpoint) -> None:
    """Raises CheckpointError if the tensor stored for a parameter has another shape than the config says."""
    source = parameter.sources[0].name
    stored = checkpoint.tensors[source].shape
    if stored != parameter.shape:
        raise CheckpointError(
            f"'{source}' has shape {stored} where the config asks for {parameter.shape}; "
            f"config.json and weights of {checkpoint.where} do not belong together"
        )


def keep_precise(model: PreTrainedModel, made: dict[str, Parameter]) -> None:
    """Leave what an architecture wants in float32 there, whatever the dtype of the rest, as transformers does."""
    for pattern, dtype in model._get_dtype_plan(model.dtype).items():
        for name, parameter in made.items():
            if re.search(pattern.replace("*", r"\d+"), name) and parameter.dtype.is_floating_point:
                parameter.dtype = dtype
