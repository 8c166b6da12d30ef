"""Cuts a checkpoint into shards: tensor by tensor, so that memory stays small, and all or nothing."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from weights_tools.checkpoint import Checkpoint, choose_dtype, fingerprint, resolve
from weights_tools.folder import summarize
from weights_tools.partition import Ranges, balance, parse_layers
from weights_tools.place import SplitError, check_free, occupied
from weights_tools.plan import Model, StagePlan
from weights_tools.planfile import PlannedCut, check_same_model, read_cut
from weights_tools.shard import FORMAT, WEIGHTS, Manifest, write_manifest
from weights_tools.stream import write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SLACK = 64 << 20
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
TEXT_FILES = ("generation_config.json", "chat_template.jinja", "chat_template.json")


def split(
    checkpoint: Checkpoint | str,
    out: Path,
    *,
    stages: int | None = None,
    layers: str | None = None,
    plan: Path | None = None,
    dtype: str | None = None,
    revision: str = "main",
    force: bool = False,
    prove: Callable[[PreTrainedConfig], None] | None = None,
    total: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Manifest]:
    """Write `out/stage-0` ... from a checkpoint. Until all of them are complete, none is there.

    Args:
        checkpoint: an open one, a folder, or a name on the Hub.
        stages: cut into so many, balanced; or
        layers: the ranges, such as `0-3,4-11`; or
        plan: a `plan.json` of this model, whose cut and dtype are taken.
        dtype: float32, bfloat16 or float16; None keeps the checkpoint's own.
        revision: of one on the Hub: a branch, tag or commit.
        force: replace shards that are in `out`.
        prove: called with the config first; raises if a ring cannot serve it.
        total: called once with the bytes to write.
        progress: called with the bytes written since the last call.

    Raises:
        CheckpointError, PartitionError, SplitError, Unservable: each a sentence; `out` is as it was.
    """
    if isinstance(checkpoint, str):
        checkpoint = Checkpoint(resolve(checkpoint, revision))
    cut = None if plan is None else read_cut(plan, dtype)
    dtype = choose_dtype(checkpoint, dtype if cut is None else cut.dtype)
    check_free(out, force)
    if prove is not None:
        prove(checkpoint.config)
    model = Model(checkpoint, dtype)
    plans = model.plan(choose_ranges(model, stages, layers, cut))
    name = fingerprint(checkpoint, dtype)
    size = sum(plan.bytes for plan in plans)
    if total is not None:
        total(size)
    try:
        with occupied(out, force) as work:
            free = shutil.disk_usage(work).free
            if free < size + SLACK:
                raise SplitError(f"{out} has {free / 1e9:.1f} GB of free space, the shards need {size / 1e9:.1f} GB")
            copy_text_side(checkpoint.folder, work / "stage-0")
            return [
                write_shard(
                    work / f"stage-{stage}", model, plan, describe(model, plan, stage, len(plans), name, dtype), progress
                )
                for stage, plan in enumerate(plans)
            ]
    except OSError as error:
        raise explain(error, out, size) from None


def explain(error: OSError, out: Path, size: int) -> SplitError:
    """What it means that the disk refused shards of `size` bytes."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SplitError(f"the disk of {out} is full; the shards need {size / 1e9:.1f} GB")
    return SplitError(f"{out} cannot be written: {error.strerror or error}")


def choose_ranges(model: Model, stages: int | None, layers: str | None, cut: PlannedCut | None = None) -> Ranges:
    """The layers of each stage: as planned, as asked, or balanced."""
    costs, head, embedding = model.costs()
    if cut is not None:
        check_same_model(cut, model.checkpoint.config.model_type, costs, head, embedding)
        return cut.ranges
    if layers is not None:
        ranges = parse_layers(layers, model.layers)
        if stages is not None and stages != len(ranges):
            raise SplitError(f"--layers names {len(ranges)} stages and --stages {stages}; give one of them")
        return ranges
    return balance(costs, stages or 1, head, embedding)


def describe(model: Model, plan: StagePlan, stage: int, stages: int, name: str, dtype: str) -> Manifest:
    """A stage's manifest, before its tensors are known."""
    return Manifest(
        format=FORMAT,
        fingerprint=name,
        model_type=model.checkpoint.config.model_type,
        name=model.checkpoint.name,
        stage=stage,
        stages=stages,
        first_layer=plan.first_layer,
        end_layer=plan.end_layer,
        layers=model.layers,
        dtype=dtype,
        bytes=plan.bytes,
        tensors={},
        tied=plan.tied,
    )


def write_shard(
    folder: Path, model: Model, plan: StagePlan, manifest: Manifest, progress: Callable[[int], None] | None, **how: Any
) -> Manifest:
    """Write one stage's folder, its manifest last; returns the manifest with the tensors in it. `how`: see `write_tensors`."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(model.checkpoint.folder / "config.json", folder / "config.json")
    tensors = write_tensors(folder / WEIGHTS, model, plan, progress or (lambda _: None), **how)
    manifest = msgspec.structs.replace(manifest, tensors=tensors)
    write_manifest(folder, manifest)
    return manifest


def copy_text_side(source: Path, folder: Path) -> None:
    """Give stage 0 what faces clients: generation config, chat template, tokenizer.

    The tokenizer is stored anew by transformers, so that `tokenizer.json` is there whatever format it came in.
    """
    folder.mkdir(exist_ok=True)
    if any((source / name).is_file() for name in TOKENIZER_FILES):
        from transformers import AutoTokenizer

        try:
            AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False).save_pretrained(folder)
        except Exception as error:  # tokenizers fail in as many ways as there are formats
            raise SplitError(f"the tokenizer of {source} cannot be read: {summarize(error)}") from None
    for name in TEXT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
