"""Messages and tensors to and from multipart frames. Everything that arrives is checked before a tensor is made of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from ring.wire.messages import PROTOCOL, Forward, Hello, RingMessage

MAX_HEADER = 4 << 20
MAX_TENSOR = 1 << 30
DTYPES = {
    "int64": torch.int64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Buffer = bytes | memoryview

# A received frame is read-only memory; hidden states are only ever read, so torch's warning does not apply.
warnings.filterwarnings("ignore", message="The given buffer is not writable")


class WireError(ValueError):
    """Bytes that are no message of this protocol."""


class Arrived(NamedTuple):
    """A message as it came in: its tensor if it has one, when it came (monotonic ns) and its size in bytes."""

    message: RingMessage
    tensor: Tensor | None
    received: int
    bytes: int


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[RingMessage] = msgspec.msgpack.Decoder(RingMessage)


def encode(message: RingMessage, tensor: Tensor | None = None) -> list[Buffer]:
    """The frames of a message; the tensor's is a view of its memory, not a copy."""
    header = _encoder.encode(message)
    if tensor is None:
        return [header]
    return [header, tensor.contiguous().view(-1).view(torch.uint8).numpy().data]


def decode(frames: Sequence[Buffer], received: int) -> Arrived:
    """The message that frames hold; its tensor is a view of the second frame's memory.

    Raises:
        WireError: too many frames, an oversized or malformed header, or a tensor that is not what the header says.
    """
    if not frames or len(frames) > 2 or len(frames[0]) > MAX_HEADER:
        raise WireError("not a ring message")
    try:
        message: RingMessage = _decoder.decode(frames[0])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        foreign = other_version(frames[0])
        if foreign is None:
            raise WireError(f"not a ring message: {error}") from None
        message = foreign
    size = sum(len(frame) for frame in frames)
    if not isinstance(message, Forward):
        if len(frames) != 1:
            raise WireError("a tensor where none belongs")
        return Arrived(message, None, received, size)
    if len(frames) != 2:
        raise WireError("a Forward without its tensor")
    dtype = DTYPES[message.dtype]
    expected = math.prod(message.shape) * dtype.itemsize
    if expected > MAX_TENSOR or len(frames[1]) != expected:
        raise WireError(f"a tensor of {len(frames[1])} bytes where the header says {expected}")
    if sum(run.count for run in message.runs) != message.shape[0]:
        raise WireError("the runs do not add up to the tensor's rows")
    return Arrived(message, torch.frombuffer(frames[1], dtype=dtype).view(message.shape), received, size)


def other_version(header: Buffer) -> Hello | None:
    """A Hello of another protocol version, which strict decoding refuses, so that the mismatch can be named."""
    try:
        raw = msgspec.msgpack.decode(header)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if isinstance(raw, dict) and raw.get("type") == "hello" and isinstance(raw.get("protocol"), int):
        version, epoch = raw["protocol"], raw.get("epoch")
        if version != PROTOCOL and isinstance(epoch, int) and 0 <= epoch < 1 << 63:
            return Hello(protocol=version, epoch=epoch, fingerprint="")
    return None
