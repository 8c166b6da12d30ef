"""int8 weights: each output channel of a linear layer has its own scale, so that its largest weight becomes 127.

A (out, in) weight is stored as int8 (out, in + 4): a row's last four bytes are its scale, a float32. So it is one tensor that
is made in one pass over the rows, whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from weights_tools.shard import SCALE_BYTES as SCALE_BYTES
from weights_tools.sources import Parameter
from weights_tools.tensorfile import as_bytes


def quantized(parameter: Parameter, name: str) -> Parameter:
    """A matrix as it is stored in int8."""
    rows, columns = parameter.shape
    return replace(parameter, name=name, shape=(rows, columns + SCALE_BYTES), dtype=torch.int8, quantized=True)


def unquantized(parameter: Parameter) -> Parameter:
    """The float32 matrix that a quantized one is made from."""
    rows, columns = parameter.shape
    return replace(parameter, shape=(rows, columns - SCALE_BYTES), dtype=torch.float32, quantized=False)


def quantize(weight: Tensor) -> Tensor:
    """float32 (rows, in) -> int8 (rows, in + 4), rounded to the nearest."""
    scale = (weight.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    levels = (weight / scale[:, None]).round().to(torch.int8)
    return torch.cat([levels, scale.clone().view(torch.int8).view(-1, SCALE_BYTES)], dim=1)


def dequantize(stored: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (rows, in + 4) -> the weights, int8 (rows, in), and the scales, float32 (rows)."""
    return stored[:, :-SCALE_BYTES], stored[:, -SCALE_BYTES:].clone().view(-1).view(torch.float32)


def gather(pieces: Iterable[memoryview], columns: int, size: int) -> Iterator[Tensor]:
    """A float32 matrix that comes as bytes, in blocks of whole rows of about `size` bytes. Each is valid until the next."""
    block = torch.empty(max(1, size // (columns * 4)), columns)
    view, filled = as_bytes(block), 0
    for piece in pieces:
        while piece:
            taken = min(len(piece), len(view) - filled)
            view[filled : filled + taken] = piece[:taken]
            filled, piece = filled + taken, piece[taken:]
            if filled == len(view):
                yield block
                filled = 0
    if filled:
        yield block[: filled // (columns * 4)]
