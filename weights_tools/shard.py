"""The shard: one stage's own folder, and the contract between the splitter that writes it and the node that loads it.

stage-1/
  shard.json           the manifest below; written last, so a folder without it is not a shard
  model.safetensors    the stage's tensors under the names that its own modules have (layers renumbered from 0)
  config.json          the whole model's config
  generation_config.json, tokenizer files, chat template    stage 0 only
"""

from __future__ import annotations

from pathlib import Path

import msgspec

FORMAT = 1
MANIFEST = "shard.json"
WEIGHTS = "model.safetensors"
SCALE_BYTES = 4
"""At the end of each row of an int8 weight: its scale, a float32."""


class ShardError(ValueError):
    """A folder that is no shard, or a damaged one; the message is one sentence that says what to do."""


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of the shard: its shape, its dtype (a torch name such as `bfloat16`), size in bytes and sha256 (hex)."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `shard.json` holds.

    `fingerprint` names the model and dtype, not the cut: all shards of one ring carry the same one. Stage `stage` of
    `stages` holds layers `first_layer` to `end_layer - 1` of `layers`. `tied` names parameters that share another
    tensor of this shard instead of being stored.
    """

    format: int
    fingerprint: str
    model_type: str
    name: str
    stage: int
    stages: int
    first_layer: int
    end_layer: int
    layers: int
    dtype: str
    bytes: int
    tensors: dict[str, TensorEntry]
    tied: dict[str, str] = {}

    @property
    def is_first(self) -> bool:
        """Whether this stage embeds tokens (and has the head)."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage has the final norm, the LM head and the sampler."""
        return self.stage == self.stages - 1


def read_manifest(folder: Path) -> Manifest:
    """Read and check a shard's manifest.

    Raises:
        ShardError: not a shard, another format version, or fields that contradict each other.
    """
    path = folder / MANIFEST
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{folder} is not a shard: {error.strerror} ({MANIFEST}); make one with `ring split`") from None
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except msgspec.DecodeError as error:
        raise ShardError(f"{path} cannot be read ({error}); split the checkpoint again") from None
    if manifest.format != FORMAT:
        raise ShardError(f"{folder} has shard format {manifest.format}, this ring reads {FORMAT}; split again")
    in_order = 0 <= manifest.first_layer < manifest.end_layer <= manifest.layers
    if not in_order or not 0 <= manifest.stage < manifest.stages <= manifest.layers:
        raise ShardError(f"{path} contradicts itself (stage and layer numbers); split the checkpoint again")
    return manifest


def holds_shards(folder: Path, stages: int, fingerprint: str) -> bool:
    """Whether a folder has all shards of this model, cut into so many stages."""
    try:
        return all(read_manifest(folder / f"stage-{stage}").fingerprint == fingerprint for stage in range(stages))
    except ShardError:
        return False


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `shard.json`, readable by people."""
    raw = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (folder / MANIFEST).write_bytes(raw + b"\n")
