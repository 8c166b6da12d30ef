"""Linear layers with prepacked weights: at decode sizes, reading the weights in the kernel's own order is what counts.

Three ways, the first that this machine has:

- oneDNN's, for bfloat16 on CPUs with AMX, which multiply many rows far faster than any other instructions.
- The ring's own (`gemm.py`), for every dtype, int8 among them.
- torch's `linear`, anywhere else.

From our own a row comes out the same to the bit, alone or among others: so a token does not depend on what else is in
its microbatch.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ring.stage.compiler import can_compile
from ring.stage.gemm import GROUP, PANEL, UNROLL, factor, paired, product
from weights_tools.quantize import SCALE_BYTES, dequantize

PIECE = 16 << 20
"""Bytes; a larger weight is packed in pieces, each given back to the system as soon as it is packed."""
HUGE_PAGE = 2 << 20
"""Bytes; smaller weights lie among others, where advice on pages is no use."""
Product = Callable[[Tensor, Tensor | None], Tensor]
"""A packed weight: x (rows, in) and a bias (out) or None -> (rows, out)."""
Pack = Callable[[Tensor, bool], Product]
"""Packs a (out, in) weight. If told to consume it, its memory is given back meanwhile; nobody else may use it."""


class PackedLinear(nn.Module):
    """Stands in for an `nn.Linear` whose weight has been packed. `weight` is an empty tensor that tells the dtype."""

    def __init__(self, product: Product, in_features: int, out_features: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.product, self.in_features, self.out_features = product, in_features, out_features
        self.weight = torch.empty(0, dtype=dtype)
        self.bias: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        return self.product(x.reshape(-1, self.in_features), self.bias).view(*x.shape[:-1], self.out_features)


def choose_pack(dtype: torch.dtype, device: torch.device) -> Pack | None:
    """How weights of this dtype are packed here, or None to leave them as they are."""
    if device.type != "cpu":
        return None
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported() and torch.backends.mkldnn.enabled:
        return pack_onednn
    return pack_panels if can_compile(device) else None


class Panels:
    """A weight as `gemm.py` reads it, and the scale of each of its outputs if it is int8."""

    def __init__(self, packed: Tensor, dtype: torch.dtype, outputs: int, inputs: int, scale: Tensor | None) -> None:
        self.packed, self.dtype, self.outputs, self.inputs = packed, dtype, outputs, inputs
        self.groups, self.columns = len(packed) // GROUP, len(packed) * PANEL
        self.padded = packed[0].numel() // PANEL
        self.scale = self._pad(scale)
        self._bias: Tensor | None = None
        self._added = self._pad(None)

    def _pad(self, numbers: Tensor | None) -> Tensor:
        """One float32 for every column of the result."""
        padded = torch.zeros(self.columns)
        if numbers is not None:
            padded[: self.outputs] = numbers
        return padded

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (rows, in) and a bias (out) or None -> (rows, out)."""
        if bias is not self._bias:
            self._bias, self._added = bias, self._pad(bias)
        factors = x.to(factor(self.dtype)).contiguous()
        if self.padded != self.inputs:
            factors = nn.functional.pad(factors, (0, self.padded - self.inputs))
        y = torch.empty(len(x), self.columns, dtype=x.dtype)
        product(self.dtype, x.dtype).call(
            factors.data_ptr(),
            self.packed.data_ptr(),
            self.scale.data_ptr(),
            self._added.data_ptr(),
            y.data_ptr(),
            len(x),
            self.padded,
            self.columns,
            self.groups,
            torch.get_num_threads(),
        )
        return y[:, : self.outputs] if self.columns != self.outputs else y


def pack_panels(weight: Tensor, consume: bool) -> Product:
    """Store a weight as `gemm.py` reads it: (out, in) of a float dtype, or int8 (out, in + 4) as `quantize.py` has it."""
    quantized = weight.dtype == torch.int8
    scale = dequantize(weight)[1] if quantized else None
    outputs, inputs = weight.shape[0], weight.shape[1] - SCALE_BYTES * quantized
    step, depth = GROUP * PANEL, paired(weight.dtype)
    panels, padded = -(-outputs // step) * GROUP, -(-inputs // UNROLL) * UNROLL
    # Empty, so that its memory is taken piece by piece, as the weight's is given back.
    packed = torch.empty(panels, padded // depth, PANEL, depth, dtype=weight.dtype)
    if packed.nbytes >= HUGE_PAGE:  # before it is touched: fewer addresses to look up, 3 to 8 % less time
        advise(packed, "MADV_HUGEPAGE")
    packed[-(-outputs // PANEL) :].zero_()
    for start, piece in pieces(weight, step):
        numbers = piece[:, :inputs]
        if padded != inputs or len(piece) % PANEL:
            numbers = nn.functional.pad(numbers, (0, padded - inputs, 0, -len(piece) % PANEL))
        whole = numbers.view(-1, PANEL, padded // depth, depth).transpose(1, 2)
        packed[start // PANEL : start // PANEL + len(whole)] = whole
        if consume:
            advise(piece, "MADV_DONTNEED")
    return Panels(packed, weight.dtype, outputs, inputs, scale)


def pack_onednn(weight: Tensor, consume: bool) -> Product:
    """Reorder a (out, in) weight for oneDNN's inner product."""
    packed, sizes = [], []
    for _, piece in pieces(weight, 1):
        packed.append(torch.ops.mkldnn._reorder_linear_weight(piece))
        sizes.append(len(piece))
        if consume:
            advise(piece, "MADV_DONTNEED")
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def multiplied(x: Tensor, bias: Tensor | None) -> Tensor:
        biases = [None] * len(sizes) if bias is None else torch.split(bias, sizes)
        parts = [multiply(x, piece, part, "none", [], "") for piece, part in zip(packed, biases, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    return multiplied


def pieces(weight: Tensor, step: int) -> Iterator[tuple[int, Tensor]]:
    """A weight's rows, a multiple of `step` at a time and about `PIECE` bytes, each with its first row's number."""
    rows = max(1, PIECE // (weight.shape[1] * weight.element_size()) // step) * step
    for start in range(0, len(weight), rows):
        yield start, weight[start : start + rows]


def advise(tensor: Tensor, advice: str) -> None:
    """Tell the system something of a contiguous tensor's whole pages, where it takes such advice. After MADV_DONTNEED, which
    gives them back, their contents are lost."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > first and hasattr(mmap, advice):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), getattr(mmap, advice))
