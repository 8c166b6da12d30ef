"""Linear layers with prepacked weights: at decode sizes, reading the weights in the kernel's own order is what counts.

Three kernels, the first that this machine has for the dtype:

- oneDNN with a weight reordered once (float32 everywhere; bfloat16 and float16 where the CPU multiplies them, from
  AVX-512 on).
- FBGEMM's float16 weights with float32 activations, for 2-byte dtypes on older CPUs, where oneDNN has nothing and
  torch's own product is many times slower than the memory.
- torch's `linear`, anywhere else.
- FBGEMM's int8 product for int8 weights.

From the packed ones a row comes out the same to the bit, alone or among others: so a token does not depend on what else is
in its microbatch.
"""

from __future__ import annotations

import ctypes
import mmap
import warnings
from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from weights_tools.quantize import SCALE_BYTES, dequantize

PIECE = 16 << 20
"""Bytes; a larger weight is packed in pieces, each given back to the system as soon as it is packed."""
# FBGEMM's operators have no successor on such CPUs yet; `has_fbgemm` sees when they have gone.
warnings.filterwarnings("ignore", message="fbgemm_.* is deprecated")
warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, ")
FBGEMM_ROWS = 120
"""FBGEMM computes so many rows at a time."""


class Kernel(Protocol):
    """A packed weight: x (rows, in) and a bias (out) or None -> (rows, out)."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor: ...


class PackedLinear(nn.Module):
    """Stands in for an `nn.Linear` whose weight has been packed. `weight` is an empty tensor that tells the dtype."""

    def __init__(
        self, weight: Tensor, pack: Callable[[Tensor], Kernel], consume: bool, dtype: torch.dtype | None = None
    ) -> None:
        """`consume`: the weight's memory is given back while it is packed; nobody else may use it. `dtype`: what the
        layer takes and gives, if that is not the weight's."""
        super().__init__()
        self.out_features, self.in_features = weight.shape[0], weight.shape[1] - SCALE_BYTES * (weight.dtype == torch.int8)
        self.weight = torch.empty(0, dtype=dtype or weight.dtype)
        self.bias: Tensor | None = None
        rows = max(1, min(self.out_features, PIECE // (weight.shape[1] * weight.element_size())))
        starts = range(0, self.out_features, rows)
        self.pieces: list[tuple[int, Kernel]] = []
        for start in starts:
            piece = weight[start : start + rows]
            self.pieces.append((len(piece), pack(piece)))
            if consume and len(starts) > 1:
                give_back(piece)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) -> (…, out)."""
        flat = x.reshape(-1, self.in_features)
        if len(self.pieces) == 1:
            y = self.pieces[0][1](flat, self.bias)
        else:
            biases = (
                [None] * len(self.pieces) if self.bias is None else torch.split(self.bias, [size for size, _ in self.pieces])
            )
            y = torch.cat([kernel(flat, bias) for (_, kernel), bias in zip(self.pieces, biases, strict=True)], dim=-1)
        return y.view(*x.shape[:-1], self.out_features)


def give_back(tensor: Tensor) -> None:
    """Return a contiguous tensor's whole pages to the system. Its contents are lost."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > first and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)


def choose_pack(dtype: torch.dtype, device: torch.device) -> Callable[[Tensor], Kernel] | None:
    """How weights of this dtype are packed here, or None to leave them as they are."""
    if device.type != "cpu":
        return None
    if has_onednn(dtype):
        return pack_onednn
    if dtype in (torch.bfloat16, torch.float16) and has_fbgemm():
        return pack_fbgemm
    return None


def has_onednn(dtype: torch.dtype) -> bool:
    """Whether torch's oneDNN operators take this dtype on this CPU."""
    mkldnn = torch.ops.mkldnn
    if not torch.backends.mkldnn.enabled or not hasattr(mkldnn, "_reorder_linear_weight"):
        return False
    if dtype == torch.bfloat16:
        return bool(mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def pack_onednn(weight: Tensor) -> Kernel:
    """Reorder a (out, in) weight for oneDNN's inner product."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def kernel(x: Tensor, bias: Tensor | None) -> Tensor:
        return multiply(x, packed, bias, "none", [], "")  # type: ignore[no-any-return]

    return kernel


def has_fbgemm() -> bool:
    """Whether torch still has FBGEMM's float16 product and this CPU can run it."""
    return hasattr(torch, "fbgemm_pack_gemm_matrix_fp16") and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@cache
def exact_rows() -> list[int]:
    """For each number of rows the next one with which FBGEMM's product of a row is the one that most numbers give.

    It divides the rows among kernels of one to six (or more) rows each, and those for one or two sum in another order.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 512, generator=generator) for rows in (FBGEMM_ROWS, 64))
    packed, zeros = torch.fbgemm_pack_gemm_matrix_fp16(weight), torch.zeros(64)
    multiply = torch.fbgemm_linear_fp16_weight_fp32_activation
    whole = multiply(x, packed, zeros)
    exact = [0, *(rows for rows in range(1, FBGEMM_ROWS + 1) if torch.equal(multiply(x[:rows], packed, zeros), whole[:rows]))]
    return [next(rows for rows in exact if rows >= wanted) for wanted in range(FBGEMM_ROWS + 1)]


def pack_fbgemm(weight: Tensor) -> Kernel:
    """Pack a (out, in) weight as float16 for FBGEMM, accumulated in float32.

    bfloat16 fits exactly into float16's longer mantissa but not into its range: a weight with larger values is left
    plain; those below 2^-24 become 0.
    """
    if not bool(weight.abs().max() < torch.finfo(torch.float16).max):
        return lambda x, bias: linear(x, weight, bias)
    packed = torch.fbgemm_pack_gemm_matrix_fp16(weight.float())
    multiply = torch.fbgemm_linear_fp16_weight_fp32_activation
    zeros = torch.zeros(weight.shape[0])
    dtype = weight.dtype

    def kernel(x: Tensor, bias: Tensor | None) -> Tensor:
        last = len(x) % FBGEMM_ROWS
        wide = pad(x.float(), (0, 0, 0, exact_rows()[last] - last))
        y = multiply(wide, packed, zeros)[: len(x)]
        return (y if bias is None else y + bias).to(dtype)

    return kernel


HIGH, MIDDLE = 128, 64
LEVELS = 63 * HIGH
"""An activation as two digits of base 128, each in 7 bits: more overflow the 16-bit sums of CPUs before VNNI."""


def has_int8() -> bool:
    """Whether torch still has FBGEMM's int8 product and this CPU can run it."""
    there = hasattr(torch, "_make_per_channel_quantized_tensor") and "fbgemm" in torch.backends.quantized.supported_engines
    return there and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def pack_int8(stored: Tensor) -> Kernel:
    """Pack int8 (out, in + 4) as `quantize.py` stores it, for FBGEMM's product with float32 activations.

    FBGEMM multiplies integers only. So that nothing but the weights is rounded to 8 bits, each row of activations is
    scaled to +-8064 and cut into a high and a low digit; both are rows of one product, which is exact, and then added.
    That keeps 13 bits of the row's largest value, where bfloat16 keeps 8 of each.
    """
    torch.backends.quantized.engine = "fbgemm"
    weight, scale = dequantize(stored)
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    whole = torch._make_per_channel_quantized_tensor(weight.contiguous(), scale.double(), zeros, 0)
    packed = torch.ops.quantized.linear_prepack(whole, None)
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def kernel(x: Tensor, bias: Tensor | None) -> Tensor:
        wide = x.float()
        top = wide.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * LEVELS)
        levels = wide * (LEVELS / top)
        high = torch.round(levels * (1 / HIGH))
        y = multiply(torch.cat([high, levels - high * HIGH]), 1.0, MIDDLE, packed)
        y = torch.add(y[len(x) :], y[: len(x)], alpha=HIGH) * (top * (1 / LEVELS))
        return (y if bias is None else y + bias).to(x.dtype)

    return kernel
