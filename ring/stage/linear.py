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
from ring.stage.gemm import GROUP, PANEL, UNROLL, product
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


def pack_panels(weight: Tensor, consume: bool) -> Product:
    """Store a weight as `gemm.py` reads it: (out, in) of a float dtype, or int8 (out, in + 4) as `quantize.py` has it."""
    quantized = weight.dtype == torch.int8
    scale = dequantize(weight)[1] if quantized else None
    outputs, inputs = weight.shape[0], weight.shape[1] - SCALE_BYTES * quantized
    step = GROUP * PANEL
    panels, padded = -(-outputs // step) * GROUP, -(-inputs // UNROLL) * UNROLL
    # Empty, so that its memory is taken piece by piece, as the weight's is given back.
    packed = torch.empty(panels, padded, PANEL, dtype=weight.dtype)
    if packed.nbytes >= HUGE_PAGE:  # before it is touched: fewer addresses to look up, 3 to 8 % less time
        advise(packed, "MADV_HUGEPAGE")
    packed[outputs // PANEL :].zero_()
    packed[:, inputs:].zero_()
    for start, piece in pieces(weight, step):
        whole = len(piece) // PANEL
        first = start // PANEL
        packed[first : first + whole, :inputs] = piece[: whole * PANEL, :inputs].view(whole, PANEL, inputs).transpose(1, 2)
        if rest := len(piece) - whole * PANEL:
            packed[first + whole, :inputs, :rest] = piece[whole * PANEL :, :inputs].t()
        if consume:
            advise(piece, "MADV_DONTNEED")
    multiply = product(weight.dtype).call

    def multiplied(x: Tensor, bias: Tensor | None) -> Tensor:
        wide = x.float().contiguous() if padded == inputs else nn.functional.pad(x.float(), (0, padded - inputs))
        y = torch.zeros(len(x), panels * PANEL)
        inner = y[:, :outputs]
        if bias is not None and scale is None:
            inner.copy_(bias)
        threads = torch.get_num_threads()
        multiply(wide.data_ptr(), packed.data_ptr(), y.data_ptr(), len(x), padded, panels * PANEL, panels // GROUP, threads)
        if scale is not None:
            inner = inner.mul_(scale) if bias is None else torch.addcmul(bias.float(), inner, scale)
        return inner.to(x.dtype)

    return multiplied


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
