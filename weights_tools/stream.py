"""Writes a shard's tensors in the safetensors format, several at a time, each in small pieces through one core's cache."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from weights_tools.convert import held, pieces
from weights_tools.journal import STEP, Journal
from weights_tools.plan import Model, StagePlan
from weights_tools.shard import TensorEntry
from weights_tools.sources import Parameter
from weights_tools.tensorfile import SAFETENSORS_NAMES

WORKERS = max(2, min(4, os.cpu_count() or 1))
BUDGET = 64 << 20
SYNC = 128 << 20  # the disk begins its part after so many bytes, not after all


def write_tensors(
    path: Path,
    model: Model,
    plan: StagePlan,
    progress: Callable[[int], None],
    journal: Journal | None = None,
    workers: int = WORKERS,
    stop: threading.Event | None = None,
) -> dict[str, TensorEntry]:
    """Write all tensors of a stage to one safetensors file; returns what the manifest says of them.

    The sizes are known beforehand, so the header is written first and each tensor has its place after it, whenever it
    comes.

    Args:
        path: the file.
        model: whose tensors.
        plan: which of them.
        progress: called in the caller's thread, with the bytes written since the last call.
        journal: goes on with a file that is there as far as this says, and is kept up to date.
        workers: how many tensors to make at a time.
        stop: set when it has failed, for whatever the workers may be waiting for.

    Raises:
        CheckpointError: a tensor cannot be made.
        OSError: the disk is full, or fails.
    """
    raw = make_header(plan)
    with path.open("wb" if journal is None or journal.is_new or not path.exists() else "r+b", buffering=0) as file:
        file.write(raw)
        writer = Writer(file.fileno(), len(raw), model, journal, workers, stop)
        digests = writer.write(plan.stored, progress)
        os.fsync(file.fileno())
    return {
        name: TensorEntry(parameter.shape, dtype_name(parameter.dtype), parameter.bytes, digests[name])
        for name, parameter in plan.stored.items()
    }


def make_header(plan: StagePlan) -> bytes:
    """What a safetensors file with these tensors begins with."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, parameter in plan.stored.items():
        code = SAFETENSORS_NAMES[dtype_name(parameter.dtype)]
        header[name] = {"dtype": code, "shape": parameter.shape, "data_offsets": [end, end + parameter.bytes]}
        end += parameter.bytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


class Writer:
    """Worker threads that each make, hash and write one tensor at a time; none of the three holds Python's lock."""

    def __init__(
        self,
        fd: int,
        data_start: int,
        model: Model,
        journal: Journal | None,
        workers: int,
        stop: threading.Event | None,
    ) -> None:
        self.fd, self.data_start, self.model, self.journal, self.workers = fd, data_start, model, journal, workers
        self.budget = Budget(BUDGET)
        self.written: SimpleQueue[int | BaseException] = SimpleQueue()
        self.stop = stop or threading.Event()

    def write(self, stored: dict[str, Parameter], progress: Callable[[int], None]) -> dict[str, str]:
        """Write all; returns their sha256 by name."""
        offsets = dict(zip(stored, accumulate((p.bytes for p in stored.values()), initial=self.data_start), strict=False))
        largest_first = sorted(stored, key=lambda name: -stored[name].bytes)  # so that no worker ends long after the rest
        with (
            single_threaded(),
            ThreadPoolExecutor(1) as syncer,
            ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            try:
                digests = {name: pool.submit(self._write_one, name, stored[name], offsets[name]) for name in largest_first}
                left = sum(parameter.bytes for parameter in stored.values())
                syncs, unsynced = [], 0
                while left:
                    size = self.written.get()
                    if isinstance(size, BaseException):
                        raise size
                    left -= size
                    progress(size)
                    unsynced += size
                    if unsynced >= SYNC:
                        unsynced = 0
                        syncs.append(syncer.submit(os.fdatasync, self.fd))
                for sync in syncs:
                    sync.result()  # the kernel tells of a failed write only once
                return {name: digest.result() for name, digest in digests.items()}
            finally:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                syncer.shutdown(cancel_futures=True)

    def _write_one(self, name: str, parameter: Parameter, offset: int) -> str:
        tensors = self.model.checkpoint.tensors
        done, digest = 0, hashlib.sha256()
        try:
            if self.journal is not None:
                done, digest = self.journal.recall(name, self.fd, offset)
                self.written.put(done)
            noted = done
            with self.budget.take(held(parameter, tensors)):
                for piece in pieces(parameter, tensors, self.model.frame, done):
                    if self.stop.is_set():
                        break
                    digest.update(piece)
                    write_all(self.fd, piece, offset + done)
                    done += len(piece)
                    self.written.put(len(piece))
                    if self.journal is not None and (done - noted >= STEP or done == parameter.bytes):
                        self.journal.note(name, done, digest)
                        noted = done
        except BaseException as error:
            self.written.put(error)
            raise
        return digest.hexdigest()


class Budget:
    """Keeps the memory that is held for whole tensors under `limit` bytes, except that a single larger one may pass."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self.changed = threading.Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Hold `size` bytes, once they are free."""
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + size <= self.limit)
            self.used += size
        try:
            yield
        finally:
            with self.changed:
                self.used -= size
                self.changed.notify_all()


@contextmanager
def single_threaded() -> Iterator[None]:
    """Each worker is one thread and leaves the other cores to the others; torch's setting is put back afterwards."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_all(fd: int, data: memoryview, at: int) -> None:
    """Write all of it at a place of the file; the kernel may take less at a time."""
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
