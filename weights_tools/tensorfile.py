"""The safetensors file: where each tensor lies, and how its bytes are read, from a disk or from elsewhere."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
import torch
from torch import Tensor

from weights_tools.folder import CheckpointError

MAX_HEADER = 100 << 20  # what the safetensors library allows

DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16", "U32": "uint32", "I32": "int32",
    "F32": "float32", "U64": "uint64", "I64": "int64", "F64": "float64", "C64": "complex64",
}  # fmt: skip
SAFETENSORS_NAMES = {name: code for code, name in DTYPES.items()}


class HeaderEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor in the header of a safetensors file."""

    dtype: str
    shape: list[Annotated[int, msgspec.Meta(ge=0)]]
    data_offsets: tuple[int, int]


Fill = Callable[[memoryview], None]
"""Fills a piece of memory with the bytes that come next."""


class TensorFile(Protocol):
    """A safetensors file. `stream` gives what fills memory with `size` bytes from `offset` on, in order, and raises
    CheckpointError for whatever goes wrong."""

    @property
    def name(self) -> str:
        """Its name within the checkpoint."""

    def stream(self, offset: int, size: int) -> AbstractContextManager[Fill]:
        """Bytes `offset` to `offset + size - 1`."""


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine's disk."""

    path: Path

    @property
    def name(self) -> str:
        """Without its folder."""
        return self.path.name

    def __str__(self) -> str:
        return str(self.path)

    @contextmanager
    def stream(self, offset: int, size: int) -> Iterator[Fill]:
        """Read and not mapped, as mapped pages would count as memory in use."""
        at = offset

        def fill(view: memoryview) -> None:
            nonlocal at
            while view:
                read = os.preadv(file.fileno(), [view], at)
                if read == 0:
                    raise damaged(f"{self.path} became shorter while it was read")
                at, view = at + read, view[read:]

        try:
            with self.path.open("rb", buffering=0) as file:
                yield fill
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file: `bytes` bytes from `offset` on, row-major; `dtype` is a torch name."""

    file: TensorFile
    offset: int
    bytes: int
    dtype: str
    shape: tuple[int, ...]

    def stream(self, start: int = 0) -> AbstractContextManager[Fill]:
        """Its bytes from `start` on."""
        return self.file.stream(self.offset + start, self.bytes - start)


def damaged(what: str) -> CheckpointError:
    """The error for a file that is not whole."""
    return CheckpointError(f"{what}; download it again")


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, checked against the file's size, so that a cut-off file is found at once.

    Raises:
        CheckpointError: cannot be opened, truncated, or a header that contradicts itself.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = header_length(path, file.read(8), size)
            raw = file.read(length)
    except OSError as error:
        raise damaged(f"{path} cannot be opened ({error.strerror})") from None
    return parse_header(LocalFile(path), raw, size)


def header_length(file: object, start: bytes, size: int) -> int:
    """How long the header is, from the first eight bytes of a file of `size` bytes.

    Raises:
        CheckpointError: no safetensors file, or one that ends within its header.
    """
    length = int.from_bytes(start, "little")
    if size < 8 or (length <= MAX_HEADER and length > size - 8):
        raise damaged(f"{file} is truncated: it ends inside its header")
    if length > MAX_HEADER:
        raise damaged(f"{file} is no safetensors file")
    return length


def parse_header(file: TensorFile, raw: bytes, size: int) -> dict[str, StoredTensor]:
    """Every tensor that the header `raw` of a file of `size` bytes names.

    Raises:
        CheckpointError: a header that contradicts itself or the file's size.
    """
    try:
        entries = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        header = {name: msgspec.json.decode(entry, type=HeaderEntry) for name, entry in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(f"{file} is no safetensors file ({error})") from None
    return locate(file, header, 8 + len(raw), size)


def locate(file: TensorFile, header: dict[str, HeaderEntry], data_start: int, size: int) -> dict[str, StoredTensor]:
    """Turn header entries into places in the file; they must cover its data from first to last byte, without overlap."""
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1].data_offsets):
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise damaged(f"{file} stores '{name}' as {entry.dtype}, which cannot be read")
        start, stop = entry.data_offsets
        if start != end or stop - start != math.prod(entry.shape) * getattr(torch, dtype).itemsize:
            raise damaged(f"{file} has a header that contradicts itself at '{name}'")
        if data_start + stop > size:
            raise damaged(f"{file} is truncated: it ends before or inside '{name}'")
        tensors[name] = StoredTensor(file, data_start + start, stop - start, dtype, tuple(entry.shape))
        end = stop
    if data_start + end != size:
        raise damaged(f"{file} has {size - data_start - end} bytes after its last tensor")
    return tensors


def read_tensor(stored: StoredTensor) -> Tensor:
    """A whole tensor.

    Raises:
        CheckpointError: the file cannot be read, or has become shorter.
    """
    tensor = torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))
    with stored.stream() as fill:
        fill(as_bytes(tensor))
    return tensor


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    if not tensor.numel():
        return memoryview(b"")
    view: memoryview = tensor.view(-1).view(torch.uint8).numpy().data
    return view
