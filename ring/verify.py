"""`ring verify`: holds a ring's shards against the whole model, first their bytes, then what their layers compute.

Memory holds one shard at a time, or of the reference one layer (or the embedding, or the LM head) at a time, and the
hidden states between all layers, which are small.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from ring.stage.load import load_stage
from ring.stage.model import DTYPES, StageModel
from ring.wire.messages import Run, Sampling
from weights_tools.checkpoint import Checkpoint, resolve
from weights_tools.compare import Difference, Differs, check_ring, compare_shard, find_shards
from weights_tools.convert import pieces
from weights_tools.plan import Model
from weights_tools.quantize import dequantize
from weights_tools.shard import Manifest, read_manifest
from weights_tools.skeleton import Unservable, build_frame, find_layers, layer_of, rebuild_buffers
from weights_tools.tensorfile import as_bytes

TOKENS = 32
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 5e-3, "int8": 3e-2}
"""How far a layer's output may be from the reference's, as a share of its norm: what rounding does, several times over."""


class LayerReport(msgspec.Struct, frozen=True):
    """How far a layer's output is from transformers', as a share of its norm; layer None is the LM head's logits."""

    stage: int
    layer: int | None
    difference: float


class Report(msgspec.Struct, frozen=True):
    """What was compared, and the first difference, if there is one."""

    equal: bool
    stages: int
    tensors: int
    bytes: int
    layers: list[LayerReport]
    difference: Difference | None = None


class States:
    """What the reference computes: each layer's input, the last one's output, and the last token's logits."""

    def __init__(self, layers: int) -> None:
        self.inputs: list[Tensor] = [torch.empty(0)] * (layers + 1)
        self.logits = torch.empty(0)


def verify_ring(
    folders: list[Path],
    reference: str,
    total: Callable[[str, int], None] = lambda _what, _size: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Report:
    """Compare shards with the checkpoint that they should be cut from.

    Args:
        folders: the shards in the ring's order, or the one folder that holds them.
        reference: the checkpoint's folder, or its name on the Hub.
        total: called when a part of the work begins, with what it is and how much.
        progress: called with how much of that was done since the last call.

    Raises:
        CheckpointError, ShardError, Unservable: they cannot be compared, in one sentence.
    """
    folders = find_shards(folders)
    manifests = [read_manifest(folder) for folder in folders]
    checkpoint = Checkpoint(resolve(reference))
    layers: list[LayerReport] = []
    tensors = done = 0
    difference: Difference | None = None

    def count(size: int) -> None:
        nonlocal done
        done += size
        progress(size)

    try:
        check_ring(folders, manifests, checkpoint)
        model = Model(checkpoint, manifests[0].dtype)
        ranges = [(manifest.first_layer, manifest.end_layer) for manifest in manifests]
        total("comparing tensors", sum(manifest.bytes for manifest in manifests))
        for stage, (folder, manifest) in enumerate(zip(folders, manifests, strict=True)):
            compare_shard(folder, manifest, model, model.plan_stage(ranges, stage), count)
            tensors += len(manifest.tensors)
        tokens = torch.randint(1, checkpoint.config.vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(0))
        total("running the reference", model.layers)
        states = run_reference(model, manifests[0].dtype, tokens, progress)
        total("running the shards", model.layers)
        for folder, manifest in zip(folders, manifests, strict=True):
            layers += run_shard(folder, manifest, tokens, states, progress)
    except Differs as error:
        difference = error.difference
    return Report(difference is None, len(folders), tensors, done, layers, difference)


@torch.inference_mode()
def run_reference(model: Model, dtype: str, tokens: Tensor, progress: Callable[[int], None]) -> States:
    """Run transformers' own model on `tokens` (T,), each module's weights in memory only while it runs.

    Raises:
        Unservable: a model that takes weights from a module without running it.
    """
    whole = build_frame(model.checkpoint.config, DTYPES[dtype])
    rebuild_buffers(whole, torch.device("cpu"))
    path, layers = find_layers(whole)
    states = States(len(layers))
    for name, module in whole.named_modules():
        if layer_of(name, path) is None and any(True for _ in module.named_parameters(recurse=False)):
            borrow(module, name, model, recurse=False)
    for at, layer in enumerate(layers):
        borrow(layer, f"{path}.{at}", model, recurse=True)

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], at: int = at) -> None:
            states.inputs[at] = entering(args, kwargs).clone()

        def finish(_: nn.Module, __: tuple[Any, ...], output: Any, at: int = at) -> None:
            states.inputs[at + 1] = leaving(output).clone()
            progress(1)

        layer.register_forward_pre_hook(keep, with_kwargs=True)
        layer.register_forward_hook(finish)
    try:
        states.logits = whole(input_ids=tokens[None], use_cache=False).logits[0, -1].clone()
    except (NotImplementedError, RuntimeError) as error:
        reason = f"transformers' '{model.checkpoint.config.model_type}' cannot be run one layer at a time: {error}"
        raise Unservable(reason.splitlines()[0]) from None
    return states


def borrow(module: nn.Module, path: str, model: Model, recurse: bool) -> None:
    """Have a module's weights read from the checkpoint when it is about to run, and dropped when it has."""
    owned = list(module.state_dict().keys()) if recurse else [name for name, _ in module.named_parameters(recurse=False)]
    names = [name for name in owned if f"{path}.{name}" in model.parameters or f"{path}.{name}" in model.tied]

    def put(make: Callable[[str, Tensor], Tensor]) -> None:
        for name in names:
            owner, _, leaf = name.rpartition(".")
            place = module.get_submodule(owner)
            tensor = make(f"{path}.{name}", getattr(place, leaf))
            if leaf in place._parameters:
                place._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
            else:
                place._buffers[leaf] = tensor

    module.register_forward_pre_hook(lambda *_: put(lambda name, _: read_parameter(model, name)))
    module.register_forward_hook(lambda *_: put(lambda _, tensor: torch.empty_like(tensor, device="meta")))


def read_parameter(model: Model, name: str) -> Tensor:
    """One tensor of the whole model, as transformers wants it."""
    parameter = model.parameters[name if name in model.parameters else model.tied[name]]
    tensor = torch.empty(parameter.shape, dtype=parameter.dtype)
    memory, at = as_bytes(tensor), 0
    for piece in pieces(parameter, model.checkpoint.tensors, model.frame):
        memory[at : at + len(piece)] = piece
        at += len(piece)
    if parameter.quantized:
        weight, scale = dequantize(tensor)
        tensor = (weight * scale[:, None]).to(model.frame.dtype)
    return tensor.t() if parameter.transposed else tensor


def run_shard(
    folder: Path, manifest: Manifest, tokens: Tensor, states: States, progress: Callable[[int], None]
) -> list[LayerReport]:
    """Run a shard's layers, each on what the reference gave to it, so that one wrong layer does not blame the next.

    Raises:
        Differs: a layer's output, or the logits, are further off than rounding explains.
    """
    stage = load_stage(folder, verify=False)
    reports: list[LayerReport] = []

    def check(layer: int | None, ours: Tensor, theirs: Tensor) -> None:
        off = distance(ours, theirs, manifest.dtype)
        reports.append(LayerReport(manifest.stage, layer, off))
        if not off <= TOLERANCE[manifest.dtype]:
            what = "the logits are" if layer is None else f"the output of layer {layer} is"
            raise Differs(
                Difference(
                    f"stage {manifest.stage}: {what} off by {off:.2g} of its norm, where rounding gives at most "
                    f"{TOLERANCE[manifest.dtype]:g}; its weights are right, so its computation is not",
                    manifest.stage,
                    layer,
                )
            )

    watch_layers(stage, states, check, progress)
    count = len(tokens)
    inputs = tokens if manifest.is_first else states.inputs[manifest.first_layer][0]
    output = stage.forward(inputs, [Run(0, 0, count, count, Sampling(), prompt=count)])
    if manifest.is_last:
        check(None, output[-1:], states.logits[None])
    return reports


def watch_layers(
    stage: StageModel, states: States, check: Callable[[int | None, Tensor, Tensor], None], progress: Callable[[int], None]
) -> None:
    """Give each layer the reference's input and pass on the reference's output; call `check` with what it made itself."""
    _, layers = find_layers(stage.model)
    for at, layer in enumerate(layers, stage.manifest.first_layer):

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], at: int = at) -> Any:
            if at == 0:
                check(0, entering(args, kwargs), states.inputs[0])  # the embedding's, before any layer
            given = states.inputs[at]
            return ((given, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": given})

        def leave(_: nn.Module, __: tuple[Any, ...], output: Any, at: int = at) -> Any:
            check(at, leaving(output), states.inputs[at + 1])
            progress(1)
            given = states.inputs[at + 1]
            return (given, *output[1:]) if isinstance(output, tuple) else given

        layer.register_forward_pre_hook(enter, with_kwargs=True)
        layer.register_forward_hook(leave)


def entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states (1, T, hidden size) that a layer is called with."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def leaving(output: Any) -> Tensor:
    """The hidden states that a layer returns."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def distance(ours: Tensor, theirs: Tensor, dtype: str) -> float:
    """How far the rows of one tensor are from another's, as a share of their norms: the worst row's in float32.

    In 16 bits a router may rightly choose another expert for a row where two are as good as equal, so there it is the
    middle row's.
    """
    width = ours.shape[-1]
    ours, theirs = ours.reshape(-1, width).float(), theirs.reshape(-1, width).float()
    off = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-30)
    return float(off.max() if dtype == "float32" else off.median())
