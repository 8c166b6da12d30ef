"""Vectors of numbers as kernels use them: read and written in any dtype, multiplied, added up, and the exponential function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from llvmlite import ir

from ring.stage.compiler import BYTE, FLOAT, INT, LONG, POINTER, VOID, address, declare, features

LANES = 16
"""Numbers that are worked on together: two registers of AVX2, one of AVX-512, four of NEON."""
VECTOR, WHOLE = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)
STORED: dict[torch.dtype, ir.Type] = {
    torch.float32: FLOAT,
    torch.bfloat16: ir.IntType(16),
    torch.float16: ir.HalfType(),
    torch.int8: BYTE,
}
"""How numbers lie in memory."""
FOLDED = 4
"""Vectors that are folded together."""
LINE = 64
"""Bytes that the memory gives at a time."""
MAGIC = 1.5 * 2**23
"""Added to a small float32, it leaves the nearest whole number in the lowest bits."""


class BrainType(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"


PAIRS = ir.VectorType(BrainType(), 2 * LANES)
"""Two bfloat16 for each of LANES numbers."""


def registers() -> int:
    """How many vectors of LANES float32 this CPU's registers hold."""
    return 32 if features().get("avx512f") else 8  # 16 of AVX2 hold half a vector each, 32 of NEON a quarter


def has_pairs() -> bool:
    """Whether this CPU multiplies pairs of bfloat16 and adds the products to float32."""
    return bool(features().get("avx512bf16") and features().get("avx512f"))


def read(b: ir.IRBuilder, dtype: torch.dtype, place: ir.Value) -> ir.Value:
    """LANES numbers of any dtype as float32, exactly."""
    return widen(b, dtype, b.load(place, align=dtype.itemsize, typ=ir.VectorType(STORED[dtype], LANES)))


def widen(b: ir.IRBuilder, dtype: torch.dtype, numbers: ir.Value) -> ir.Value:
    """Numbers as they lie in memory as float32."""
    if dtype == torch.float32:
        return numbers
    if dtype == torch.float16:
        return b.fpext(numbers, VECTOR)
    if dtype == torch.int8:
        return b.sitofp(b.sext(numbers, WHOLE), VECTOR)
    return b.bitcast(b.shl(b.zext(numbers, WHOLE), WHOLE([16] * LANES)), VECTOR)  # bfloat16 is the upper half of a float32


def read_pairs(b: ir.IRBuilder, dtype: torch.dtype, place: ir.Value) -> ir.Value:
    """LANES pairs of bfloat16 or int8 as bfloat16, exactly."""
    if dtype == torch.bfloat16:
        return b.load(place, align=2, typ=PAIRS)
    low, high = read(b, dtype, place), read(b, dtype, address(b, place, LONG(LANES), 1))
    pack = declare(b.module, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", PAIRS, [VECTOR] * 2)
    return b.call(pack, [high, low])


def write(b: ir.IRBuilder, dtype: torch.dtype, numbers: ir.Value, place: ir.Value) -> None:
    """Store LANES float32 as numbers of a float dtype."""
    b.store(narrow(b, dtype, numbers), place, align=dtype.itemsize)


def narrow(b: ir.IRBuilder, dtype: torch.dtype, numbers: ir.Value) -> ir.Value:
    """Float32 as numbers of a float dtype lie in memory: the nearest ones, of two as near the even one."""
    if dtype == torch.float32:
        return numbers
    if dtype == torch.float16:
        return b.fptrunc(numbers, ir.VectorType(STORED[dtype], LANES))
    bits = b.bitcast(numbers, WHOLE)
    upper = b.lshr(bits, WHOLE([16] * LANES))
    half = b.add(b.and_(upper, WHOLE([1] * LANES)), WHOLE([0x7FFF] * LANES))
    rounded = b.lshr(b.add(bits, half), WHOLE([16] * LANES))
    is_nan = b.fcmp_unordered("uno", numbers, numbers)
    kept = b.select(is_nan, b.or_(upper, WHOLE([0x40] * LANES)), rounded)
    return b.trunc(kept, ir.VectorType(STORED[dtype], LANES))


def round_to(b: ir.IRBuilder, dtype: torch.dtype, numbers: ir.Value) -> ir.Value:
    """Float32 rounded to what a float dtype can hold."""
    return widen(b, dtype, narrow(b, dtype, numbers))


def spread(b: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """One number of 32 bits in all lanes."""
    lanes = ir.VectorType(number.type, LANES)
    one = b.insert_element(lanes(ir.Undefined), number, INT(0))
    return b.shuffle_vector(one, lanes(ir.Undefined), WHOLE([0] * LANES))


def multiply_add(b: ir.IRBuilder, one: ir.Value, other: ir.Value, sums: ir.Value) -> ir.Value:
    """one * other + sums, rounded once."""
    return b.call(declare(b.module, f"llvm.fma.v{LANES}f32", VECTOR, [VECTOR] * 3), [one, other, sums])


def multiply_pairs(b: ir.IRBuilder, one: ir.Value, other: ir.Value, sums: ir.Value) -> ir.Value:
    """Both products of each pair of bfloat16, added to a float32."""
    dot = declare(b.module, "llvm.x86.avx512bf16.dpbf16ps.512", VECTOR, [VECTOR, PAIRS, PAIRS])
    return b.call(dot, [sums, b.bitcast(one, PAIRS), other])


def fetch(b: ir.IRBuilder, place: ir.Value) -> None:
    """Ask the memory for the line at some address, into the second-level cache: in the first it would drive out what is being
    worked on. Nothing happens if there is no such address."""
    b.call(declare(b.module, "llvm.prefetch.p0", VOID, [POINTER, INT, INT, INT]), [place, INT(0), INT(2), INT(1)])


def fold(b: ir.IRBuilder, numbers: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]) -> ir.Value:
    """All lanes combined into one number, halves first."""
    width = LANES
    while width > 1:
        width //= 2
        nothing = ir.VectorType(FLOAT, 2 * width)(ir.Undefined)
        half = ir.VectorType(INT, width)
        low, high = half(list(range(width))), half(list(range(width, 2 * width)))
        numbers = combine(b.shuffle_vector(numbers, nothing, low), b.shuffle_vector(numbers, nothing, high))
    return b.extract_element(numbers, INT(0))


def fold_together(b: ir.IRBuilder, sums: list[ir.Value]) -> ir.Value:
    """FOLDED vectors, or fewer, each folded into one number in the same way, whatever the others are."""
    zero = VECTOR([0.0] * LANES)
    parts = [sums[lane] if lane < len(sums) else zero for lane in range(FOLDED)]
    width = LANES
    while width > 1:
        width //= 2
        if len(parts) > 1:
            parts = [join_halves(b, one, other, width) for one, other in zip(parts[::2], parts[1::2], strict=True)]
        else:
            parts = [join_halves(b, parts[0], None, width)]
    return parts[0]


def join_halves(b: ir.IRBuilder, one: ir.Value, other: ir.Value | None, width: int) -> ir.Value:
    """The vectors of 2 * `width` numbers that one value, or two, consist of, each with its halves added."""
    total = one.type.count * (1 if other is None else 2)
    lows = [at for at in range(total) if at % (2 * width) < width]
    highs = [at + width for at in lows]
    mask = ir.VectorType(INT, total // 2)
    second = one.type(ir.Undefined) if other is None else other
    return b.fadd(b.shuffle_vector(one, second, mask(lows)), b.shuffle_vector(one, second, mask(highs)))


def exponential(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """exp(x) for x <= 0, to two units in the last place: 2^n e^r with |r| <= ln 2 / 2, after Cephes' `expf`. NaN stays NaN."""

    def every(number: float) -> ir.Constant:
        return VECTOR([number] * LANES)

    low = every(-87.0)  # e^-87 is the smallest that is no subnormal number
    x = b.select(b.fcmp_ordered("<", x, low), low, x)
    shifted = multiply_add(b, x, every(1.4426950408889634), every(MAGIC))  # its last bits are n, rounded
    n = b.fsub(shifted, every(MAGIC))
    r = multiply_add(b, n, every(-0.693359375), x)
    r = multiply_add(b, n, every(2.12194440e-4), r)
    sums = every(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        sums = multiply_add(b, sums, r, every(factor))
    sums = b.fadd(multiply_add(b, b.fmul(r, r), sums, r), every(1.0))
    power = b.shl(b.add(b.bitcast(shifted, WHOLE), WHOLE([127] * LANES)), WHOLE([23] * LANES))
    return b.fmul(sums, b.bitcast(power, VECTOR))
