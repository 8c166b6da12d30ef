"""The place that shards are written to: all of them appear in it at once, or it stays as it was.

New shards are made in `out/.partial` and then renamed into `out`; those they replace wait in `.partial/old` until all
are there. Whatever point a split is killed at, the next one finds out from this which of the two must be put back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from weights_tools.shard import MANIFEST

PARTIAL = ".partial"
OLD = "old"


class SplitError(ValueError):
    """A split that cannot be done; the message is one sentence that says what to do."""


def check_free(out: Path, force: bool) -> None:
    """Changes nothing.

    Raises:
        SplitError: `out` holds anything but shards, or shards and not `force`.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise SplitError(f"{out} is not a folder")
    for entry in sorted(out.iterdir()):
        if entry.name != PARTIAL and not is_shard(entry):
            raise SplitError(f"{out} holds something else ({entry.name}); choose an empty or new folder for --out")
    if (shards_in(out) or shards_in(out / PARTIAL / OLD)) and not force:
        raise SplitError(f"{out} holds shards already; replace them with --force")


@contextlib.contextmanager
def occupied(out: Path, force: bool) -> Iterator[Path]:
    """A folder to write `stage-0`, `stage-1`, … into. They replace what `out` holds when the block ends without an error.

    Raises:
        SplitError: as `check_free`, or another split is at work here.
        OSError: `out` cannot be written to.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    work = out / PARTIAL
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            restore(out)
            try:
                check_free(out, force)
                work.mkdir()
                yield work
                swap(out)
            finally:
                restore(out)
    finally:
        with contextlib.suppress(OSError):  # only what is empty goes: `out` after a success is not
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other splits out. The kernel lets go of the lock when the process ends, however it ends."""
    folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise SplitError(f"another split is writing to {out}; wait for it, or choose another folder") from None
    except OSError:
        pass  # a file system without locks: a split is still whole or nothing, only two at once are not told
    try:
        yield
    finally:
        os.close(folder)


def swap(out: Path) -> None:
    """Move the old shards out and the new ones in. The last rename settles it."""
    work = out / PARTIAL
    (work / OLD).mkdir()
    for shard in shards_in(out):
        shard.rename(work / OLD / shard.name)
    for shard in shards_in(work):  # stage 0 first: while it is in `work`, no other new one is in `out`
        shard.rename(out / shard.name)
    (work / OLD).rename(work / "replaced")


def restore(out: Path) -> None:
    """Undo a swap that did not finish, then remove the working folder."""
    work = out / PARTIAL
    if (work / OLD).exists():
        if not (work / "stage-0").exists():  # so what is in `out` is new
            for shard in reversed(shards_in(out)):
                shard.rename(work / shard.name)
        for shard in shards_in(work / OLD):
            shard.rename(out / shard.name)
    shutil.rmtree(work, ignore_errors=True)


def is_shard(folder: Path) -> bool:
    """Whether a split made it."""
    return re.fullmatch(r"stage-\d+", folder.name) is not None and (folder / MANIFEST).is_file()


def shards_in(folder: Path) -> list[Path]:
    """The shards of a folder by their stage; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(filter(is_shard, folder.iterdir()), key=lambda shard: int(shard.name.removeprefix("stage-")))
