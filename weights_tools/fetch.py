"""Fetches one stage of a checkpoint from the Hugging Face Hub: of the weights only its bytes, straight into the shard.

The shard is the one that `ring split` would have made. It is written in `out/.fetch-K` and moves to `out/stage-K` when it
is whole; killed before that, it goes on from there.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from weights_tools.checkpoint import (
    AT_ONCE,
    INDEX,
    SINGLE,
    Checkpoint,
    CheckpointError,
    Tensors,
    choose_dtype,
    fingerprint,
    join,
    read_weight_map,
)
from weights_tools.journal import Journal
from weights_tools.place import SplitError, locked
from weights_tools.plan import Model, StagePlan
from weights_tools.planfile import read_cut
from weights_tools.remote import Absent, RemoteFile, Repository, coalesce
from weights_tools.shard import WEIGHTS, Manifest, ShardError, read_manifest
from weights_tools.split import (
    SLACK,
    TEXT_FILES,
    TOKENIZER_FILES,
    choose_ranges,
    copy_text_side,
    describe,
    explain,
    write_shard,
)
from weights_tools.tensorfile import header_length, parse_header

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONNECTIONS = 8
TOKENIZER_SIDE_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt",
    "sentencepiece.bpe.model", "source.spm", "target.spm", "tiktoken.model",
)  # fmt: skip


@dataclass(frozen=True)
class Fetched:
    """A shard that was fetched. `received` is the bytes that came, `kept` those of the shard that an earlier run had left."""

    folder: Path
    manifest: Manifest
    received: int
    kept: int


def fetch(
    name: str,
    out: Path,
    *,
    stage: int,
    stages: int | None = None,
    layers: str | None = None,
    plan: Path | None = None,
    dtype: str | None = None,
    revision: str = "main",
    endpoint: str | None = None,
    force: bool = False,
    prove: Callable[[PreTrainedConfig], None] | None = None,
    total: Callable[[int], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Fetched:
    """Write `out/stage-<stage>` from a repository. If it is there already, nothing is done.

    Args:
        name: the repository, such as `Qwen/Qwen2-7B`.
        stage: which one, from 0.
        revision: a branch, tag or commit.
        endpoint: another server than the Hub.
        force: replace the stage that is there, if it is another.
        out, stages, layers, plan, dtype, prove, total, progress: as for `split`.

    Raises:
        CheckpointError, PartitionError, SplitError, Unservable: each a sentence. What has been fetched stays for the next try.
    """
    repository = open_repository(name, revision, endpoint)
    cut = None if plan is None else read_cut(plan, dtype)
    with tempfile.TemporaryDirectory(prefix="ring-fetch-") as folder:
        checkpoint = open_checkpoint(repository, Path(folder), with_text=stage == 0)
        dtype = choose_dtype(checkpoint, dtype if cut is None else cut.dtype)
        if prove is not None:
            prove(checkpoint.config)
        model = Model(checkpoint, dtype)
        ranges = choose_ranges(model, stages, layers, cut)
        if not 0 <= stage < len(ranges):
            raise SplitError(f"there is no stage {stage} of {len(ranges)}; they are numbered from 0 to {len(ranges) - 1}")
        wanted = model.plan_stage(ranges, stage)
        manifest = describe(model, wanted, stage, len(ranges), fingerprint(checkpoint, dtype), dtype)
        if total is not None:
            total(wanted.bytes)
        try:
            return write(repository, model, wanted, manifest, out, force, progress)
        except OSError as error:
            raise explain(error, out, wanted.bytes) from None


def open_repository(name: str, revision: str, endpoint: str | None) -> Repository:
    """A repository by its name.

    Raises:
        CheckpointError: no name of one.
    """
    if Path(name).expanduser().is_dir():
        raise CheckpointError(f"{name} is a folder on this machine; cut it with `ring split`")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII):
        raise CheckpointError(f"'{name}' is no name of a model on the Hugging Face Hub, such as Qwen/Qwen2-7B")
    if endpoint is not None and not re.match(r"https?://\w", endpoint):
        raise CheckpointError(f"'{endpoint}' is no endpoint; write it as https://HOST")
    return Repository(name, revision, endpoint.rstrip("/") if endpoint else None)


def open_checkpoint(repository: Repository, folder: Path, with_text: bool) -> Checkpoint:
    """A checkpoint whose small files are in `folder` and whose tensors are where they were.

    Raises:
        CheckpointError: as for a local one, or it cannot be reached.
    """
    config = repository.download("config.json")
    if config is None:
        raise CheckpointError(
            f"{RemoteFile(repository, '').host} has no {repository.name} with a config.json at revision {repository.revision}; "
            "check the name and the revision"
        )
    (folder / "config.json").write_bytes(config)
    if with_text:
        names = [*TOKENIZER_FILES, *TOKENIZER_SIDE_FILES, *TEXT_FILES]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for name, data in zip(names, pool.map(repository.download, names), strict=True):
                if data is not None:
                    (folder / name).write_bytes(data)
    return Checkpoint(folder, find_tensors(repository, folder), repository.name)


def find_tensors(repository: Repository, folder: Path) -> Tensors:
    """Every tensor, from the headers of the files.

    Raises:
        CheckpointError: as for local files.
    """
    try:
        return read_header(RemoteFile(repository, SINGLE))
    except Absent:
        index = repository.download(INDEX)
    if index is None:
        raise CheckpointError(f"{repository.name} has no safetensors ({SINGLE} or {INDEX}), and nothing else is read")
    (folder / INDEX).write_bytes(index)
    weight_map = read_weight_map(folder / INDEX)
    files = [RemoteFile(repository, file) for file in sorted(set(weight_map.values()))]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            return join(weight_map, list(pool.map(read_header, files)), repository.name)
        except Absent:
            raise CheckpointError(f"{repository.name} lacks a file that its index names; tell its owner") from None


def read_header(file: RemoteFile) -> Tensors:
    """The tensors of one file.

    Raises:
        CheckpointError: as for a local file.
        Absent: there is no such file.
    """
    start = b"".join(file.read(0, 8))
    size = file.size or 0
    length = header_length(file, start, size)
    return parse_header(file, b"".join(file.read(8, 8 + length)), size)


def write(
    repository: Repository,
    model: Model,
    plan: StagePlan,
    manifest: Manifest,
    out: Path,
    force: bool,
    progress: Callable[[int], None] | None,
) -> Fetched:
    """Write the shard beside its place, going on with what is there, and move it there."""
    place, work = out / f"stage-{manifest.stage}", out / f".fetch-{manifest.stage}"
    if place.exists() and (there := read_there(place)) is not None and is_same(there, manifest):
        return Fetched(place, there, repository.received, plan.bytes)
    if place.exists() and not force:
        raise SplitError(f"{place} is there already, of another model or cut; replace it with --force")
    shard = work / "shard"
    shard.mkdir(parents=True, exist_ok=True)
    with locked(work):
        journal = Journal(work / "journal", subject(model, manifest))
        try:
            check_room(out, shard / WEIGHTS, plan.bytes, keep=not journal.is_new)
            if manifest.is_first:
                copy_text_side(model.checkpoint.folder, shard)
            pending = [parameter for name, parameter in plan.stored.items() if journal.claims(name) < parameter.bytes]
            sources = {source.name for parameter in pending for source in parameter.sources}
            coalesce([model.checkpoint.tensors[name] for name in sources])
            how = {"journal": journal, "workers": CONNECTIONS, "stop": repository.closed}
            manifest = write_shard(shard, model, plan, manifest, progress, **how)
        finally:
            journal.close()
        if place.exists():
            place.rename(work / "old")
        shard.rename(place)
        shutil.rmtree(work)
    return Fetched(place, manifest, repository.received, journal.kept)


def read_there(place: Path) -> Manifest | None:
    """The manifest of a shard, if it is one."""
    try:
        return read_manifest(place)
    except ShardError:
        return None


def is_same(there: Manifest, wanted: Manifest) -> bool:
    """Whether a shard is the one that is wanted, whose tensors are not known yet."""
    return msgspec.structs.replace(there, tensors={}) == wanted


def subject(model: Model, manifest: Manifest) -> str:
    """One line for what is being written and from which files: if it differs, nothing that was kept is of use."""
    files = {tensor.file for tensor in model.checkpoint.tensors.values()}
    versions = sorted((file.name, file.version) for file in files if isinstance(file, RemoteFile))
    return hashlib.sha256(msgspec.json.encode([manifest, versions])).hexdigest()


def check_room(out: Path, file: Path, size: int, keep: bool) -> None:
    """Raises SplitError if the disk cannot hold what is still to come."""
    there = file.stat().st_blocks * 512 if keep and file.exists() else 0
    free = shutil.disk_usage(out).free
    if free + there < size + SLACK:
        raise SplitError(f"{out} has {free / 1e9:.1f} GB of free space, the stage needs {(size - there) / 1e9:.1f} GB")
