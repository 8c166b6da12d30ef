"""Writes a microbatch's fresh keys and values into their slots of the KV cache, all in one call."""

from __future__ import annotations

from array import array
from functools import cache

import torch
from llvmlite import ir
from torch import Tensor

from ring.stage.compiler import (
    LONG,
    POINTER,
    VOID,
    Kernel,
    address,
    compile_kernel,
    counting,
    declare,
    internal,
    new_module,
    table_row,
)

FIELDS = 6
"""Numbers that describe a run: where its slot's keys and values lie, how many tokens the slot has room for, the first
position, how many tokens, and their first row in the microbatch."""


def store_runs(table: array[int], keys: Tensor, values: Tensor) -> None:
    """Write keys and values, each (1, KV heads, T, head size), into the slots of the runs in a table with FIELDS for each."""
    if keys.stride(3) != 1 or values.stride(3) != 1:
        keys, values = keys.contiguous(), values.contiguous()
    size, heads = keys.element_size(), keys.shape[1]
    kernel = store(keys.shape[3] * size, values.shape[3] * size)
    strides = (stride * size for states in (keys, values) for stride in (states.stride(1), states.stride(2)))
    items = len(table) // FIELDS * heads
    kernel.call(table.buffer_info()[0], keys.data_ptr(), values.data_ptr(), *strides, heads, items, torch.get_num_threads())


@cache
def store(key_bytes: int, value_bytes: int) -> Kernel:
    """The kernel for heads whose keys and values take so many bytes: `call(runs, keys, values, the strides of keys' heads and
    rows, those of values, KV heads, items, threads)`, strides in bytes. Items are runs x KV heads."""
    module = new_module()
    function = internal(module, "store", [LONG] * 10)
    runs, keys, values, key_head, key_row, value_head, value_row, heads, first, end = function.args
    copy = declare(module, "llvm.memcpy.p0.p0.i64", VOID, [POINTER, POINTER, LONG, ir.IntType(1)])
    b = ir.IRBuilder(function.append_basic_block())
    with counting(b, first, end, LONG(1)) as item:
        head = b.srem(item, heads)
        to_keys, to_values, reserve, start, count, row = table_row(b, runs, b.sdiv(item, heads), FIELDS)
        place = b.add(b.mul(head, reserve), start)
        with counting(b, LONG(0), count, LONG(1)) as at:
            to, at_row = b.add(place, at), b.add(row, at)
            for target, given, head_stride, row_stride, size in (
                (to_keys, keys, key_head, key_row, key_bytes),
                (to_values, values, value_head, value_row, value_bytes),
            ):
                source = address(b, given, b.add(b.mul(head, head_stride), b.mul(at_row, row_stride)), 1)
                b.call(copy, [address(b, target, to, size), source, LONG(size), ir.IntType(1)(0)])
    b.ret_void()
    return compile_kernel(module, function)
