"""Loads a shard into a stage model, one tensor at a time, so that memory never holds more than the shard itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig

from ring.stage.model import StageModel
from weights_tools.shard import WEIGHTS, Manifest, ShardError, read_manifest

CHUNK = 16 << 20


def load_stage(
    folder: Path, device: str = "cpu", verify: bool = True, progress: Callable[[int], None] | None = None
) -> StageModel:
    """Build the stage of a shard.

    Args:
        folder: a shard, as `ring split` writes it.
        device: a torch device.
        verify: check every tensor's sha256 while it is read.
        progress: called with the number of bytes read since the last call.

    Raises:
        ShardError: not a shard, or a damaged one.
    """
    manifest = read_manifest(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ShardError(f"{folder}/config.json cannot be read ({error}); split the checkpoint again") from None
    stage = StageModel(config, manifest, device)
    stage.fill(read_tensors(folder, manifest, verify, progress or (lambda _: None)))
    return stage


def read_tensors(
    folder: Path, manifest: Manifest, verify: bool, progress: Callable[[int], None]
) -> Iterator[tuple[str, Tensor]]:
    """Yield each stored tensor, read straight into its own memory (mapped files would count as resident twice)."""
    path = folder / WEIGHTS
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise ShardError(f"{path} cannot be opened: {error.strerror}; copy the shard again") from None
    with file:
        offsets, data_start = read_header(path, file.fileno())
        for name, entry in manifest.tensors.items():
            tensor = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
            if name not in offsets or offsets[name][1] - offsets[name][0] != entry.bytes != tensor.nbytes:
                raise ShardError(f"{path} and its manifest disagree about '{name}'; copy the shard again")
            view = tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
            digest = hashlib.sha256()
            at, done = data_start + offsets[name][0], 0
            while done < entry.bytes:
                read = os.preadv(file.fileno(), [view[done : done + CHUNK]], at + done)
                if read == 0:
                    raise ShardError(f"{path} ends inside '{name}'; copy the shard again")
                if verify:
                    digest.update(view[done : done + read])
                done += read
                progress(read)
            if verify and digest.hexdigest() != entry.sha256:
                raise ShardError(f"{path} is damaged: '{name}' does not have the checksum it was written with")
            yield name, tensor


def read_header(path: Path, fd: int) -> tuple[dict[str, tuple[int, int]], int]:
    """A safetensors file's data offsets by name, and where its data starts."""
    size = os.fstat(fd).st_size
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if size < 8 or length > size - 8:
        raise ShardError(f"{path} is truncated; copy the shard again")
    try:
        header = json.loads(os.pread(fd, length, 8))
        offsets = {name: tuple(entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ShardError(f"{path} has no safetensors header; copy the shard again") from None
    return offsets, 8 + length
