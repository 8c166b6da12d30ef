"""Checks that a shard on disk is what its manifest says, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from weights_tools.shard import WEIGHTS, Manifest, ShardError, read_manifest
from weights_tools.tensorfile import CheckpointError, StoredTensor, opened, read_header, read_into

CHUNK = 1 << 20


def verify(folder: Path, progress: Callable[[int], None] | None = None) -> Manifest:
    """Read a whole shard and compare it with its manifest; returns the manifest.

    Raises:
        ShardError: the first thing that is wrong, in one sentence.
    """
    manifest = read_manifest(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise ShardError(f"{folder} lacks {WEIGHTS}; copy the shard again")
    try:
        stored = read_header(path)
        if difference := set(stored) ^ set(manifest.tensors):
            raise ShardError(f"{path} and its manifest disagree about '{min(difference)}'; copy the shard again")
        for name, entry in manifest.tensors.items():
            tensor = stored[name]
            if (tensor.shape, tensor.dtype, tensor.bytes) != (entry.shape, entry.dtype, entry.bytes):
                raise ShardError(f"{path} and its manifest disagree about '{name}'; copy the shard again")
            if checksum(tensor, progress or (lambda _: None)) != entry.sha256:
                raise ShardError(f"{path} is damaged: '{name}' does not have the checksum it was written with; copy it again")
    except CheckpointError as error:
        raise ShardError(str(error).replace("download it again", "copy the shard again")) from None
    return manifest


def checksum(tensor: StoredTensor, progress: Callable[[int], None]) -> str:
    """The sha256 (hex) of a tensor's bytes."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with opened(tensor) as fd:
        for start in range(0, tensor.bytes, CHUNK):
            piece = buffer[: min(CHUNK, tensor.bytes - start)]
            read_into(fd, piece, tensor, start)
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()
