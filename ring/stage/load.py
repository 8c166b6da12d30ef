"""Loads a shard into a stage model, one tensor at a time, so that memory never holds more than the shard itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import AutoConfig

from ring.stage.model import StageModel
from weights_tools.shard import ShardError, read_manifest
from weights_tools.verify import read_tensors


def load_stage(
    folder: Path, device: str = "cpu", verify: bool = True, progress: Callable[[int], None] = lambda _: None
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
    stage.fill(read_tensors(folder, manifest, verify, progress))
    return stage
