"""A stage's model: transformers' own classes with only this stage's layers, filled from its shard."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ring.stage import attention
from ring.stage.fuse import fuse
from ring.stage.kv import KVCache
from ring.stage.linear import Pack, PackedLinear, Product, choose_pack, pack_panels
from ring.wire.messages import Run
from weights_tools.quantize import SCALE_BYTES, dequantize
from weights_tools.shard import Manifest, ShardError
from weights_tools.skeleton import build_frame, cut_layers, find_layers, linearize, rebuild_buffers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.bfloat16}
"""What a shard of each dtype computes in, weights of int8 aside."""
SPARE_SHARE, SPARE_BYTES = 0.1, 100 << 20
"""What packing may take beyond the shard: a share of it, and bytes."""


class Absent(nn.Module):
    """Stands where another stage has a module with weights. What comes before this stage's first layer or after its last
    is not used, so it only has to keep the forward pass going."""

    def __init__(self, embeds: bool) -> None:
        super().__init__()
        self.embeds = embeds

    def forward(self, first: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Nothing to add, for a table of embeddings; for anything else, its input."""
        return torch.zeros(()) if self.embeds else first


class StageModel:
    """The layers of one stage.

    Whatever an architecture does before its first layer (scale embeddings, add learned positions) happens on stage 0
    only, as later stages hand their input to their first layer itself; whatever it does after its last layer (norms,
    LM head, caps) happens on the last stage only, as earlier stages take the output of their last layer itself.
    """

    def __init__(self, config: PreTrainedConfig, manifest: Manifest, device: str = "cpu") -> None:
        attention.register()
        self.manifest = manifest
        self.device = torch.device(device)
        self.dtype = DTYPES[manifest.dtype]
        self.hidden_size: int = config.hidden_size
        self.vocabulary: int = config.vocab_size
        self.model = build_frame(config, self.dtype, attention="ring")
        linearize(self.model)
        cut_layers(self.model, manifest.first_layer, manifest.end_layer)
        self.cache = KVCache(manifest.first_layer, manifest.end_layer - manifest.first_layer, self.device)
        self.layers_path, _ = find_layers(self.model)
        self.base = self.model.get_submodule(self.layers_path.partition(".")[0])
        self._entering: Tensor | None = None
        self._leaving: Tensor | None = None
        self._can_keep_rows = "logits_to_keep" in inspect.signature(self.model.forward).parameters

    def fill(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Give the frame its weights; what the shard lacks is another stage's and becomes `Absent`.

        Raises:
            ShardError: the shard lacks a tensor of its own layers.
        """
        pack = choose_pack(self.dtype, self.device)
        kept = set(self.manifest.tied.values())
        for name, tensor in tensors:
            if tensor.dtype == torch.int8:
                pack_quantized(self.model, name, tensor, self.dtype, self.device)
                continue
            set_tensor(self.model, name, tensor.to(self.device))
            if pack is not None and name not in kept:
                pack_linear(self.model, name, pack, consume=True)
        for target, source in self.manifest.tied.items():
            shared = self.model.get_parameter(source)
            set_tensor(self.model, target, shared)
            # Packed, it takes memory of its own beside the shared one.
            if pack is not None and shared.nbytes <= self.manifest.bytes * SPARE_SHARE + SPARE_BYTES:
                pack_linear(self.model, target, pack, consume=False)
        for name, parameter in list(self.model.named_parameters()):
            if parameter.is_meta:
                if name.startswith(self.layers_path + "."):
                    raise ShardError(f"the shard of stage {self.manifest.stage} lacks '{name}'; split the checkpoint again")
                owner = name.rpartition(".")[0]
                module = self.model.get_submodule(owner)
                if not isinstance(module, Absent):
                    self.model.set_submodule(owner, Absent(isinstance(module, nn.Embedding)))
        rebuild_buffers(self.model, self.device)
        for module in self.model.modules():
            if hasattr(module, "layer_idx"):
                module.ring_cache = self.cache  # type: ignore[assignment]
        layers = self.model.get_submodule(self.layers_path)
        assert isinstance(layers, nn.ModuleList)
        if not self.manifest.is_first:
            layers[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        if not self.manifest.is_last:
            layers[-1].register_forward_hook(self._leave)
        self.model.requires_grad_(False)
        fuse(self.model, self.device)

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (self._entering, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self._entering}

    def _leave(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._leaving = output[0] if isinstance(output, tuple) else output

    @torch.inference_mode()
    def forward(self, inputs: Tensor, runs: list[Run]) -> Tensor:
        """Run one microbatch through the layers and cache its keys and values.

        Args:
            inputs: int64 (T,) token ids on stage 0, hidden states (T, hidden size) on the others.
            runs: how the T rows divide into sequences.

        Returns:
            Hidden states (T, hidden size); on the last stage logits (S, vocabulary) of the S rows that are sampled.

        Raises:
            RunError: a run that does not fit what is cached.
        """
        self.cache.begin(runs)
        positions = torch.tensor([at for run in runs for at in range(run.start, run.start + run.count)])
        common: dict[str, Any] = {
            "position_ids": positions[None].to(self.device),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        inputs = inputs.to(self.device)[None]
        if self.manifest.is_first:
            common["input_ids"] = inputs
        else:
            common["inputs_embeds"] = self._entering = inputs
        rows = sampled_rows(runs) if self.manifest.is_last else []
        if rows:
            output = self._logits(common, rows)
        else:
            output = self.base(**common).last_hidden_state[0]
        if not self.manifest.is_last:
            assert self._leaving is not None
            output = self._leaving[0]
        self._entering = self._leaving = None
        self.cache.commit()
        return output if rows or not self.manifest.is_last else output[:0]

    def _logits(self, common: dict[str, Any], rows: list[int]) -> Tensor:
        """The LM head for the rows that are sampled only: it is as wide as the vocabulary."""
        keep = torch.tensor(rows, device=self.device)
        if self._can_keep_rows:
            logits: Tensor = self.model(**common, logits_to_keep=keep).logits[0]
        else:
            logits = self.model(**common).logits[0][keep]
        return logits

    def measure_token_bytes(self) -> int:
        """Bytes of KV cache that one token takes here; one forward pass on a slot of its own, which also warms up."""
        run = Run(slot=0, start=0, count=1, reserve=1)
        first = torch.zeros(1, dtype=torch.int64)
        self.forward(first if self.manifest.is_first else torch.zeros(1, self.hidden_size, dtype=self.dtype), [run])
        size = self.cache.token_bytes
        self.cache.clear()
        return size


def sampled_rows(runs: list[Run]) -> list[int]:
    """The rows of the tokens that are followed by a sampled one."""
    rows, offset = [], 0
    for run in runs:
        rows += [offset + position - 1 - run.start for position in run.answered]
        offset += run.count
    return rows


def set_tensor(model: PreTrainedModel, name: str, tensor: Tensor) -> None:
    """Put a tensor where the frame has an empty parameter or buffer of that name.

    Raises:
        ShardError: the frame has no such place, or one of another shape.
    """
    owner, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(owner)
        empty = getattr(module, leaf)
    except AttributeError:
        raise ShardError(f"the shard holds '{name}', which transformers {transformers.__version__} does not know") from None
    if empty.shape != tensor.shape:
        raise ShardError(f"'{name}' has shape {tuple(tensor.shape)} in the shard, {tuple(empty.shape)} in the model")
    if leaf in module._parameters:
        module._parameters[leaf] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def pack_linear(model: PreTrainedModel, name: str, pack: Pack, consume: bool) -> None:
    """Replace the linear layer whose weight is called `name`, if it is one, by a packed one."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if type(module) is nn.Linear and leaf == "weight":
        replace_linear(model, owner, module, pack(module.weight.detach(), consume))


def replace_linear(model: PreTrainedModel, path: str, module: nn.Linear, product: Product) -> None:
    """Put a packed linear layer in the place of a plain one."""
    packed = PackedLinear(product, module.in_features, module.out_features, module.weight.dtype)
    packed.bias = module.bias
    model.set_submodule(path, packed)


def pack_quantized(model: PreTrainedModel, name: str, stored: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Replace the linear layer whose weight is called `name` by one of int8 weights, as `quantize.py` stores them. Where
    this machine has no kernel for them, they become weights of `dtype`.

    Raises:
        ShardError: there is no such linear layer, or one of another shape.
    """
    owner = name.removesuffix(".weight")
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        module = None
    if type(module) is not nn.Linear or stored.shape != (module.out_features, module.in_features + SCALE_BYTES):
        raise ShardError(f"the shard holds '{name}' as int8 {tuple(stored.shape)}, which does not fit this model")
    if choose_pack(torch.int8, device):
        replace_linear(model, owner, module, pack_panels(stored, True))
    else:
        weight, scale = dequantize(stored)
        set_tensor(model, name, (weight * scale[:, None]).to(dtype).to(device))
