"""Holds shards against the checkpoint that they should be cut from, tensor by tensor and byte by byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch

from weights_tools.checkpoint import Checkpoint, fingerprint
from weights_tools.convert import pieces
from weights_tools.place import shards_in
from weights_tools.plan import Model, StagePlan
from weights_tools.shard import MANIFEST, Manifest, ShardError
from weights_tools.skeleton import layer_of, rename_layer
from weights_tools.sources import Parameter
from weights_tools.stream import dtype_name
from weights_tools.tensorfile import StoredTensor
from weights_tools.verify import find_tensors

Progress = Callable[[int], None]


class Difference(msgspec.Struct, frozen=True):
    """The first thing that is not as it should be; `layer` counts in the whole model, None outside the layers."""

    what: str
    stage: int | None = None
    layer: int | None = None
    tensor: str | None = None


class Differs(ValueError):
    """Shards that are not what `ring split` would make of the checkpoint; `difference` is the first thing found."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(difference.what)
        self.difference = difference


def find_shards(folders: list[Path]) -> list[Path]:
    """The shards that are meant: the folders themselves, or what the one folder holds."""
    if len(folders) == 1 and not (folders[0] / MANIFEST).exists() and shards_in(folders[0]):
        return shards_in(folders[0])
    return folders


def check_ring(folders: list[Path], manifests: list[Manifest], checkpoint: Checkpoint) -> None:
    """Check that shards make up one whole model, in order, and are of this checkpoint.

    Raises:
        Differs: they are not.
    """
    first = manifests[0]
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest.stages != first.stages:
            what = (
                f"{folder} is one of {manifest.stages} stages, {folders[0]} one of {first.stages}: they are of different cuts"
            )
            raise Differs(Difference(what, manifest.stage))
    order = [manifest.stage for manifest in manifests]
    if missing := sorted(set(range(first.stages)) - set(order)):
        raise Differs(Difference(f"stage {missing[0]} of {first.stages} is missing", missing[0]))
    if order != list(range(first.stages)):
        raise Differs(Difference(f"the shards are given as stages {', '.join(map(str, order))}; give each once, in order"))
    expected = 0
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest.dtype != first.dtype:
            what = f"{folder} has the dtype {manifest.dtype}, {folders[0]} has {first.dtype}"
            raise Differs(Difference(what, manifest.stage))
        if manifest.first_layer != expected or manifest.layers != first.layers:
            raise Differs(
                Difference(f"{folder} begins with layer {manifest.first_layer} instead of {expected}", manifest.stage)
            )
        expected = manifest.end_layer
    wanted = fingerprint(checkpoint, first.dtype)
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest.fingerprint != wanted:
            what = (
                f"{folder} is of another model than {checkpoint.where}: '{manifest.name}', fingerprint {manifest.fingerprint}"
            )
            raise Differs(Difference(what, manifest.stage))
    if expected != first.layers:
        raise Differs(Difference(f"{folders[-1]} ends with layer {expected - 1} of {first.layers}", first.stages - 1))


def compare_shard(folder: Path, manifest: Manifest, model: Model, plan: StagePlan, progress: Progress) -> None:
    """Compare every tensor of a shard with what `ring split` would write.

    Args:
        folder: the shard.
        manifest: its manifest.
        model: the checkpoint's.
        plan: what the shard should hold.
        progress: called with the number of bytes compared since the last call.

    Raises:
        Differs: they differ, or the shard is damaged.
    """
    stage = manifest.stage

    def differs(local: str, what: str) -> Differs:
        name = rename_layer(local, model.layers_path, -plan.first_layer)
        layer = layer_of(name, model.layers_path)
        where = f"stage {stage}" + ("" if layer is None else f", layer {layer}")
        return Differs(Difference(f"{where}: '{name}' {what}", stage, layer, name))

    for local in [*plan.stored, *manifest.tensors]:
        if local not in manifest.tensors:
            raise differs(local, "is not in the shard")
        if local not in plan.stored:
            raise differs(local, "is in the shard, but does not belong there")
    for local in sorted({*plan.tied, *manifest.tied}):
        if plan.tied.get(local) != manifest.tied.get(local):
            raise differs(local, f"is tied to {manifest.tied.get(local)} in the shard, to {plan.tied.get(local)} in the model")
    for local, parameter in plan.stored.items():
        entry, dtype = manifest.tensors[local], dtype_name(parameter.dtype)
        if entry.dtype != dtype:
            raise differs(local, f"is {entry.dtype} in the shard, and should be {dtype}")
        if entry.shape != parameter.shape:
            raise differs(local, f"has shape {entry.shape} in the shard, and should have {parameter.shape}")
    try:
        stored = find_tensors(folder, manifest)
    except ShardError as error:
        raise Differs(Difference(f"stage {stage}: {error}", stage)) from None
    for local, parameter in plan.stored.items():
        place = compare_tensor(stored[local], manifest.tensors[local].sha256, parameter, model, progress)
        if place is not None:
            raise differs(local, place + find_elsewhere(stored[local], parameter, model))


def compare_tensor(stored: StoredTensor, sha256: str, parameter: Parameter, model: Model, progress: Progress) -> str | None:
    """What differs first between a tensor of a shard and of the checkpoint, in words; None if nothing does."""
    digest = hashlib.sha256()
    at = 0
    with stored.stream() as fill:
        for piece in pieces(parameter, model.checkpoint.tensors, model.frame):
            ours = bytearray(len(piece))
            fill(memoryview(ours))
            digest.update(ours)
            unequal = np.frombuffer(ours, np.uint8) != np.frombuffer(piece, np.uint8)
            if unequal.any():
                size = parameter.dtype.itemsize
                first = int(unequal.argmax()) // size * size
                index = tuple(map(int, np.unravel_index((at + first) // size, parameter.shape)))
                mine, theirs = (read_element(data, first, parameter.dtype) for data in (ours, bytearray(piece)))
                return f"differs first at {list(index)}: {mine} in the shard, {theirs} in the checkpoint"
            at += len(piece)
            progress(len(piece))
    if digest.hexdigest() != sha256:
        return f"is right, but {MANIFEST} has another checksum for it; a node will refuse it"
    return None


def read_element(data: bytearray, at: int, dtype: torch.dtype) -> str:
    """One element, and its bytes in hex, as two values may look the same."""
    raw = data[at : at + dtype.itemsize]
    return f"{torch.frombuffer(raw, dtype=dtype).item():.9g} (0x{raw[::-1].hex()})"


def find_elsewhere(stored: StoredTensor, parameter: Parameter, model: Model) -> str:
    """If a wrong tensor is another layer's, say whose: layers may have been swapped."""
    layer = layer_of(parameter.name, model.layers_path)
    if layer is None:
        return ""
    wrong = hashlib.sha256()
    with stored.stream() as fill:
        for start in range(0, stored.bytes, 1 << 20):
            piece = bytearray(min(1 << 20, stored.bytes - start))
            fill(memoryview(piece))
            wrong.update(piece)
    for other in range(model.layers):
        twin = model.parameters.get(rename_layer(parameter.name, model.layers_path, layer - other))
        if twin is None or other == layer or (twin.shape, twin.dtype) != (parameter.shape, parameter.dtype):
            continue
        right = hashlib.sha256()
        for view in pieces(twin, model.checkpoint.tensors, model.frame):
            right.update(view)
        if right.digest() == wrong.digest():
            return f"; it is layer {other}'s"
    return ""
