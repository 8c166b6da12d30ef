"""Attention over the KV cache, as fast as the memory gives keys and values.

For each token and each KV head it reads the keys once and the values once, in the dtype in which they are stored, for
all the query heads that share them: nothing is copied, widened in memory or repeated. Scores, softmax and sums are float32,
and each is summed up from the first key to the last, so that a token's result depends on nothing but its sequence: not on
the chunk in which a prompt's token came, nor on whether it was decoded, checked as a guess or replayed.

The tokens of a chunk share most of their keys. So one head is done with all of them before the next one's turn: its keys
and values stay in the second-level cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from llvmlite import ir

from ring.stage.compiler import (
    FLOAT,
    INT,
    LONG,
    POINTER,
    Kernel,
    address,
    compile_kernel,
    counting,
    declare,
    internal,
    new_module,
    scratch,
    smaller,
    table_row,
)
from ring.stage.store import FIELDS
from ring.stage.vectors import (
    FOLDED,
    LANES,
    LINE,
    VECTOR,
    exponential,
    fetch,
    fold,
    fold_together,
    has_pairs,
    multiply_add,
    multiply_pairs,
    read,
    read_pairs,
    registers,
    spread,
    write,
)

BLOCK = 32
"""Keys, or values, that all query heads of a KV head work on while they are in the first-level cache."""
TOKEN = 3
"""Numbers that describe a token: its run, the first position that it attends to, and how many there are. Its row is its place
among the tokens."""
REGISTERS = FOLDED
"""Sums of a step that are folded at once: of a query with some keys, or of several with one."""
AHEAD = 4096
"""Bytes of keys, or values, that the memory is asked for in advance."""


@cache
def attend(
    dtype: torch.dtype, head_size: int, value_size: int, groups: int, scale: float, cap: float | None, sinks: bool
) -> Kernel:
    """The kernel for a cache of this dtype whose KV heads are each shared by `groups` query heads:
    `call(runs, tokens, q, stride of heads, stride of rows, out, scores, room, sinks, rows, KV heads, items, threads)`.

    With `cap`, scores are bent to stay between -cap and cap, by the hyperbolic tangent (Gemma 2). With `sinks`, each head
    has a score of its own that takes its share of the attention and adds nothing (GPT-OSS).

    `runs` is the address of int64 (runs, FIELDS), `tokens` of int64 (rows, TOKEN); `q` of queries of the same dtype, whose
    strides are in numbers; `out` of results (rows, heads, value size) of it; `scores` of float32 (items, groups, room),
    of which every thread uses its first item's, with `room` for the longest attention and LANES numbers more; `sinks` of
    float32 (heads). Items are KV heads x rows.
    """
    module = new_module()
    parts = {
        "scores": write_scores(module, dtype, head_size, groups, scale),
        "softmax": write_softmax(module, cap, sinks),
        "sums": write_sums(module, dtype, value_size, groups),
    }
    return compile_kernel(module, write_attend(module, dtype, head_size, value_size, groups, sinks, parts))


def in_pairs(dtype: torch.dtype, head_size: int) -> bool:
    """Whether queries and keys are multiplied two by two."""
    return dtype == torch.bfloat16 and has_pairs() and head_size % (2 * LANES) == 0


def write_attend(
    module: ir.Module,
    dtype: torch.dtype,
    head_size: int,
    value_size: int,
    groups: int,
    with_sinks: bool,
    parts: dict[str, ir.Function],
) -> ir.Function:
    """`attend(runs, tokens, q, stride of heads, stride of rows, out, scores, room, sinks, rows, KV heads, first, end)`."""
    size = dtype.itemsize
    function = internal(module, "attend", [LONG] * 13)
    runs, tokens, q, q_head, q_row, out, scores, room, sinks, rows, kv_heads, first, end = function.args
    b = ir.IRBuilder(function.append_basic_block())
    queries, results = scratch(b, groups * head_size), scratch(b, groups * value_size)
    own = address(b, scores, b.mul(b.mul(first, LONG(groups)), room))
    with counting(b, first, end, LONG(1)) as item:
        head, row = b.sdiv(item, rows), b.srem(item, rows)
        run, start, count = table_row(b, tokens, row, TOKEN)
        keys, values, reserve, *_ = table_row(b, runs, run, FIELDS)
        place = b.add(b.mul(head, reserve), start)
        keys = address(b, keys, b.mul(place, LONG(head_size)), size)
        values = address(b, values, b.mul(place, LONG(value_size)), size)
        first_head = b.mul(head, LONG(groups))
        for group in range(groups):
            given = address(b, q, b.add(b.mul(row, q_row), b.mul(b.add(first_head, LONG(group)), q_head)), size)
            copy_queries(b, dtype, given, address(b, queries, LONG(group * head_size)), head_size)
        with counting(b, LONG(0), count, LONG(BLOCK)) as at:
            now = smaller(b, b.sub(count, at), LONG(BLOCK))
            b.call(
                parts["scores"],
                [queries, address(b, keys, b.mul(at, LONG(head_size)), size), address(b, own, at), room, now],
            )
        for group in range(groups):
            sink = b.load(address(b, sinks, b.add(first_head, LONG(group))), typ=FLOAT) if with_sinks else FLOAT(0.0)
            b.call(parts["softmax"], [address(b, own, b.mul(LONG(group), room)), count, sink])
        with counting(b, LONG(0), LONG(groups * value_size), LONG(LANES)) as at:
            write(b, torch.float32, VECTOR([0.0] * LANES), address(b, results, at))
        with counting(b, LONG(0), count, LONG(BLOCK)) as at:
            now = smaller(b, b.sub(count, at), LONG(BLOCK))
            b.call(
                parts["sums"],
                [address(b, own, at), room, address(b, values, b.mul(at, LONG(value_size)), size), results, now],
            )
        place = b.mul(b.add(b.mul(row, b.mul(kv_heads, LONG(groups))), first_head), LONG(value_size))
        with counting(b, LONG(0), LONG(groups * value_size), LONG(LANES)) as at:
            write(b, dtype, read(b, torch.float32, address(b, results, at)), address(b, out, b.add(place, at), size))
    b.ret_void()
    return function


def copy_queries(b: ir.IRBuilder, dtype: torch.dtype, given: ir.Value, place: ir.Value, head_size: int) -> None:
    """A head's query, as it will be multiplied: float32, or bfloat16 in pairs."""
    if in_pairs(dtype, head_size):
        for at in range(0, head_size, 2 * LANES):
            b.store(read_pairs(b, dtype, address(b, given, LONG(at), 2)), address(b, place, LONG(at), 2), align=2)
    else:
        for at in range(0, head_size, LANES):
            write(b, torch.float32, read(b, dtype, address(b, given, LONG(at), dtype.itemsize)), address(b, place, LONG(at)))


def write_scores(module: ir.Module, dtype: torch.dtype, head_size: int, groups: int, scale: float) -> ir.Function:
    """`scores(queries, keys, scores, room, count)`: the scaled products of the queries with some keys."""
    function = internal(module, "scores", [POINTER, POINTER, POINTER, LONG, LONG])
    queries, keys, scores, room, count = function.args
    b = ir.IRBuilder(function.append_basic_block())
    size = dtype.itemsize
    if in_pairs(dtype, head_size):
        take, multiply, width, held = read_pairs, multiply_pairs, 2 * LANES, dtype
    else:
        take, multiply, width, held = read, multiply_add, LANES, torch.float32  # what `copy_queries` made of the queries
    ahead = LONG(AHEAD // (head_size * size))
    for heads in batched(range(groups), REGISTERS):
        most = REGISTERS // len(heads)  # keys at once, so that all sums are folded together
        whole = b.sub(count, b.srem(count, LONG(most)))
        for first, end, together in ((LONG(0), whole, most), (whole, count, 1)):
            with b.if_then(b.icmp_signed("<", first, end)), counting(b, first, end, LONG(together)) as key:
                cells = [(head, turn) for head in heads for turn in range(together)]
                rows = [b.add(key, LONG(turn)) for turn in range(together)]
                places = [address(b, keys, b.mul(row, LONG(head_size)), size) for row in rows]
                if heads[0] == 0:
                    for row in rows:
                        fetch_row(b, keys, b.add(row, ahead), head_size * size)
                sums: dict[tuple[int, int], ir.Value] = dict.fromkeys(cells, VECTOR([0.0] * LANES))
                for at in range(0, head_size, width):
                    parts = [take(b, dtype, address(b, place, LONG(at), size)) for place in places]
                    for head, turn in cells:
                        query = address(b, queries, LONG(head * head_size))
                        numbers = take(b, held, address(b, query, LONG(at), held.itemsize))
                        sums[head, turn] = multiply(b, numbers, parts[turn], sums[head, turn])
                folded = b.fmul(fold_together(b, list(sums.values())), ir.VectorType(FLOAT, REGISTERS)([scale] * REGISTERS))
                for lane, (head, turn) in enumerate(cells):
                    place = address(b, scores, b.add(b.mul(LONG(head), room), rows[turn]))
                    b.store(b.extract_element(folded, INT(lane)), place)
    b.ret_void()
    return function


def write_softmax(module: ir.Module, cap: float | None, with_sinks: bool) -> ir.Function:
    """`softmax(scores, count, sink)`: in place. What lies behind them, up to LANES numbers, is overwritten."""
    function = internal(module, "softmax", [POINTER, LONG, FLOAT])
    scores, count, sink = function.args
    b = ir.IRBuilder(function.append_basic_block())
    most, total = b.alloca(VECTOR), b.alloca(VECTOR)
    if cap is not None:
        with counting(b, LONG(0), count, LONG(LANES)) as at:
            write(b, torch.float32, bend(b, read(b, torch.float32, address(b, scores, at)), cap), address(b, scores, at))
    write(b, torch.float32, VECTOR([float("-inf")] * LANES), address(b, scores, count))
    b.store(spread(b, sink) if with_sinks else VECTOR([float("-inf")] * LANES), most)
    with counting(b, LONG(0), count, LONG(LANES)) as at:
        numbers, before = read(b, torch.float32, address(b, scores, at)), b.load(most, typ=VECTOR)
        b.store(b.select(b.fcmp_ordered(">", before, numbers), before, numbers), most)
    highest = spread(b, fold(b, b.load(most, typ=VECTOR), lambda x, y: b.select(b.fcmp_ordered(">", x, y), x, y)))
    b.store(VECTOR([0.0] * LANES), total)
    with counting(b, LONG(0), count, LONG(LANES)) as at:
        weights = exponential(b, b.fsub(read(b, torch.float32, address(b, scores, at)), highest))
        write(b, torch.float32, weights, address(b, scores, at))
        b.store(b.fadd(b.load(total, typ=VECTOR), weights), total)
    everything = fold(b, b.load(total, typ=VECTOR), b.fadd)
    if with_sinks:
        everything = b.fadd(everything, b.extract_element(exponential(b, b.fsub(spread(b, sink), highest)), INT(0)))
    share = spread(b, b.fdiv(FLOAT(1.0), everything))
    with counting(b, LONG(0), count, LONG(LANES)) as at:
        place = address(b, scores, at)
        write(b, torch.float32, b.fmul(read(b, torch.float32, place), share), place)
    b.ret_void()
    return function


def bend(b: ir.IRBuilder, x: ir.Value, cap: float) -> ir.Value:
    """tanh(x / cap) * cap, by the exponential of what is below zero: tanh |z| = (1 - e) / (1 + e) with e = exp(-2 |z|)."""
    size = declare(b.module, f"llvm.fabs.v{LANES}f32", VECTOR, [VECTOR])
    one = VECTOR([1.0] * LANES)
    power = exponential(b, b.fmul(b.call(size, [x]), VECTOR([-2 / cap] * LANES)))
    bent = b.fdiv(b.fmul(b.fsub(one, power), VECTOR([cap] * LANES)), b.fadd(one, power))
    return b.select(b.fcmp_ordered("<", x, VECTOR([0.0] * LANES)), b.fneg(bent), bent)


def write_sums(module: ir.Module, dtype: torch.dtype, value_size: int, groups: int) -> ir.Function:
    """`sums(weights, room, values, results, count)`: adds some values, each by the weight that each head gives it."""
    function = internal(module, "sums", [POINTER, LONG, POINTER, POINTER, LONG])
    weights, room, values, results, count = function.args
    b = ir.IRBuilder(function.append_basic_block())
    together = registers() // 2  # sums at once
    for heads in batched(range(groups), REGISTERS):
        for parts in batched(range(0, value_size, LANES), max(1, together // len(heads))):
            places = {(head, at): address(b, results, LONG(head * value_size + at)) for head in heads for at in parts}
            sums = {cell: b.alloca(VECTOR) for cell in places}
            for cell, place in places.items():
                b.store(read(b, torch.float32, place), sums[cell])
            with counting(b, LONG(0), count, LONG(1)) as key:
                numbers = {
                    head: spread(b, b.load(address(b, weights, b.add(b.mul(LONG(head), room), key)), typ=FLOAT))
                    for head in heads
                }
                if heads[0] == 0 and parts[0] == 0:
                    fetch_row(b, values, b.add(key, LONG(AHEAD // (value_size * dtype.itemsize))), value_size * dtype.itemsize)
                for at in parts:
                    place = address(b, values, b.add(b.mul(key, LONG(value_size)), LONG(at)), dtype.itemsize)
                    part = read(b, dtype, place)
                    for head in heads:
                        cell = sums[head, at]
                        b.store(multiply_add(b, numbers[head], part, b.load(cell, typ=VECTOR)), cell)
            for cell, place in places.items():
                write(b, torch.float32, b.load(sums[cell], typ=VECTOR), place)
    b.ret_void()
    return function


def fetch_row(b: ir.IRBuilder, rows: ir.Value, row: ir.Value, size: int) -> None:
    """Ask the memory for a row of `size` bytes."""
    for at in range(0, size, LINE):
        fetch(b, address(b, rows, b.add(b.mul(row, LONG(size)), LONG(at)), 1))


def batched(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    """Some at a time."""
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
