"""What models do between products, each in one pass where torch takes several: norms, rotations, activations.

Every result is rounded where transformers rounds it.
"""

from __future__ import annotations

from functools import cache
from math import pi, sqrt
from typing import Literal

import torch
from llvmlite import ir
from torch import Tensor

from ring.stage.compiler import FLOAT, LONG, Kernel, address, compile_kernel, counting, declare, internal, new_module
from ring.stage.vectors import LANES, VECTOR, exponential, fold, multiply_add, read, round_to, spread, write

Activation = Literal["silu", "gelu"]
"""x * sigmoid(x), and GELU in its tanh form (Hendrycks and Gimpel, 2016), which is x * sigmoid of a cubic."""


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, whose size LANES divides (Zhang and Sennrich, 2019)."""
    x = x.contiguous()
    y = torch.empty_like(x)
    size = x.shape[-1]
    norm(x.dtype, weight.dtype, epsilon).call(
        x.data_ptr(), weight.data_ptr(), y.data_ptr(), size, x.numel() // size, torch.get_num_threads()
    )
    return y


@cache
def norm(dtype: torch.dtype, weight_dtype: torch.dtype, epsilon: float) -> Kernel:
    """`call(x, weight, y, size of a row, rows, threads)`."""
    module = new_module()
    function = internal(module, "norm", [LONG] * 6)
    x, weight, y, size, first, end = function.args
    root = declare(module, "llvm.sqrt.f32", FLOAT, [FLOAT])
    b = ir.IRBuilder(function.append_basic_block())
    squares = b.alloca(VECTOR)
    with counting(b, first, end, LONG(1)) as row:
        start = b.mul(row, size)
        b.store(VECTOR([0.0] * LANES), squares)
        with counting(b, LONG(0), size, LONG(LANES)) as at:
            numbers = read(b, dtype, address(b, x, b.add(start, at), dtype.itemsize))
            b.store(multiply_add(b, numbers, numbers, b.load(squares, typ=VECTOR)), squares)
        mean = b.fdiv(fold(b, b.load(squares, typ=VECTOR), b.fadd), b.sitofp(size, FLOAT))
        factor = spread(b, b.fdiv(FLOAT(1.0), b.call(root, [b.fadd(mean, FLOAT(epsilon))])))
        with counting(b, LONG(0), size, LONG(LANES)) as at:
            place = b.add(start, at)
            numbers = b.fmul(read(b, dtype, address(b, x, place, dtype.itemsize)), factor)
            weights = read(b, weight_dtype, address(b, weight, at, weight_dtype.itemsize))
            numbers = b.fmul(round_to(b, dtype, numbers), weights)
            write(b, dtype, numbers, address(b, y, place, dtype.itemsize))
    b.ret_void()
    return compile_kernel(module, function)


def rotate(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn each half of a head's numbers by its position's angles (Su et al., 2021), in place.

    Args:
        states: (1, heads, T, head size), of which 2 * LANES divides the last; its numbers lie side by side.
        cosines, sines: (1, T, head size), contiguous, of the same dtype.
    """
    _, heads, rows, size = states.shape
    turn(states.dtype).call(
        states.data_ptr(),
        states.stride(1),
        states.stride(2),
        cosines.data_ptr(),
        sines.data_ptr(),
        heads,
        size // 2,
        rows,
        torch.get_num_threads(),
    )
    return states


@cache
def turn(dtype: torch.dtype) -> Kernel:
    """`call(states, stride of a head, stride of a row, cosines, sines, heads, half a head's size, rows, threads)`."""
    module = new_module()
    function = internal(module, "turn", [LONG] * 9)
    states, head_stride, row_stride, cosines, sines, heads, half, first, end = function.args
    b = ir.IRBuilder(function.append_basic_block())

    def times(one: ir.Value, other: ir.Value) -> ir.Value:
        return round_to(b, dtype, b.fmul(one, other))

    with counting(b, first, end, LONG(1)) as row, counting(b, LONG(0), heads, LONG(1)) as head:
        start = b.add(b.mul(row, row_stride), b.mul(head, head_stride))
        angles = b.mul(row, b.mul(half, LONG(2)))
        with counting(b, LONG(0), half, LONG(LANES)) as at:
            upper = b.add(at, half)
            one, other = (address(b, states, b.add(start, here), dtype.itemsize) for here in (at, upper))
            low, high = read(b, dtype, one), read(b, dtype, other)
            for numbers, across, here, place in ((low, b.fneg(high), at, one), (high, low, upper, other)):
                turned = b.add(angles, here)
                cosine, sine = (read(b, dtype, address(b, table, turned, dtype.itemsize)) for table in (cosines, sines))
                write(b, dtype, b.fadd(times(numbers, cosine), times(across, sine)), place)
    b.ret_void()
    return compile_kernel(module, function)


def activated(x: Tensor, activation: Activation, gated: Tensor | None = None) -> Tensor:
    """The activation of x, times `gated` of the same shape and dtype if there is one; LANES divides the last dimension."""
    x = x.contiguous()
    y = torch.empty_like(x)
    other = x if gated is None else gated.contiguous()
    activate(x.dtype, activation, gated is not None).call(
        x.data_ptr(), other.data_ptr(), y.data_ptr(), x.numel() // LANES, torch.get_num_threads()
    )
    return y


@cache
def activate(dtype: torch.dtype, activation: Activation, gated: bool) -> Kernel:
    """`call(x, what it gates, y, vectors, threads)`."""
    module = new_module()
    function = internal(module, "activate", [LONG] * 5)
    x, other, y, first, end = function.args
    size = declare(module, f"llvm.fabs.v{LANES}f32", VECTOR, [VECTOR])
    b = ir.IRBuilder(function.append_basic_block())
    one = VECTOR([1.0] * LANES)
    with counting(b, first, end, LONG(1)) as item:
        at = b.mul(item, LONG(LANES))
        numbers = point = read(b, dtype, address(b, x, at, dtype.itemsize))
        if activation == "gelu":
            slope, cubic = 2 * sqrt(2 / pi), 2 * sqrt(2 / pi) * 0.044715
            squares = b.fmul(numbers, numbers)
            point = b.fmul(numbers, multiply_add(b, squares, VECTOR([cubic] * LANES), VECTOR([slope] * LANES)))
        power = exponential(b, b.fneg(b.call(size, [point])))
        above = b.select(b.fcmp_ordered("<", point, VECTOR([0.0] * LANES)), power, one)
        result = b.fmul(numbers, b.fdiv(above, b.fadd(power, one)))
        if gated:
            result = b.fmul(round_to(b, dtype, result), read(b, dtype, address(b, other, at, dtype.itemsize)))
        write(b, dtype, result, address(b, y, at, dtype.itemsize))
    b.ret_void()
    return compile_kernel(module, function)
