"""Checks that a shard on disk is what its manifest says, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from weights_tools.folder import CheckpointError
from weights_tools.shard import WEIGHTS, Manifest, ShardError, read_manifest
from weights_tools.tensorfile import StoredTensor, as_bytes, read_header

CHUNK = 1 << 20

Progress = Callable[[int], None]


def verify(folder: Path, progress: Progress = lambda _: None) -> Manifest:
    """Read a whole shard and compare it with its manifest; returns the manifest.

    Raises:
        ShardError: the first thing that is wrong, in one sentence.
    """
    manifest = read_manifest(folder)
    buffer = memoryview(bytearray(CHUNK))
    for name, stored in find_tensors(folder, manifest).items():
        digest = hashlib.sha256()
        for piece in read_pieces(stored, buffer, progress):
            digest.update(piece)
        check_digest(folder, manifest, name, digest.hexdigest())
    return manifest


def read_tensors(
    folder: Path, manifest: Manifest, check: bool = True, progress: Progress = lambda _: None
) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor, read straight into its own memory (mapped pages would count as resident twice).

    Args:
        check: compare each with its checksum while it is read.
        progress: called with the number of bytes read since the last call.

    Raises:
        ShardError: the first thing that is wrong, in one sentence; nothing is allocated for what the header belies.
    """
    for name, stored in find_tensors(folder, manifest).items():
        tensor = torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))
        digest = hashlib.sha256()
        for piece in read_pieces(stored, as_bytes(tensor), progress):
            if check:
                digest.update(piece)
        if check:
            check_digest(folder, manifest, name, digest.hexdigest())
        yield name, tensor


def find_tensors(folder: Path, manifest: Manifest) -> dict[str, StoredTensor]:
    """Where each tensor of a shard lies, in the manifest's order; the file's header must agree with the manifest.

    Raises:
        ShardError: it does not, or the file is missing or cut off.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise ShardError(f"{folder} lacks {WEIGHTS}; copy the shard again")
    try:
        stored = read_header(path)
    except CheckpointError as error:
        raise as_shard_error(error) from None
    if difference := set(stored) ^ set(manifest.tensors):
        raise ShardError(f"{path} and its manifest disagree about '{min(difference)}'; copy the shard again")
    for name, entry in manifest.tensors.items():
        if (stored[name].shape, stored[name].dtype, stored[name].bytes) != (entry.shape, entry.dtype, entry.bytes):
            raise ShardError(f"{path} and its manifest disagree about '{name}'; copy the shard again")
    return {name: stored[name] for name in manifest.tensors}


def read_pieces(stored: StoredTensor, memory: memoryview, progress: Progress) -> Iterator[memoryview]:
    """Read a tensor piece by piece, into memory for all of it or, over and over, into that of one piece."""
    whole = len(memory) == stored.bytes
    try:
        with stored.stream() as fill:
            for start in range(0, stored.bytes, CHUNK):
                at, size = start if whole else 0, min(CHUNK, stored.bytes - start)
                fill(memory[at : at + size])
                yield memory[at : at + size]
                progress(size)
    except CheckpointError as error:
        raise as_shard_error(error) from None


def check_digest(folder: Path, manifest: Manifest, name: str, digest: str) -> None:
    """Raises ShardError if a tensor's bytes are not those that were written."""
    if digest != manifest.tensors[name].sha256:
        raise ShardError(
            f"{folder / WEIGHTS} is damaged: '{name}' does not have the checksum it was written with; copy the shard again"
        )


def as_shard_error(error: CheckpointError) -> ShardError:
    """What is wrong with a shard's file; unlike a checkpoint's, it is copied and not downloaded."""
    return ShardError(str(error).replace("download it again", "copy the shard again"))
