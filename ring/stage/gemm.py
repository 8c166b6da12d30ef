"""The product of a linear layer, `y = x Wᵀ + bias`, as fast as the memory gives the weights.

At decode a stage reads every weight once for a few rows. The general libraries are made for many rows and take up to
twice as long as the memory does. Here it is two ideas:

- Panels: the weight is stored as panels of 16 outputs, a panel as its 16 weights for input 0, then for input 1, and so
  on. So a product reads the weights from the first to the last, whatever the number of rows, and asks the memory for the
  next block while it multiplies this one.
- Tiles: some rows x 16 outputs and more are summed up in registers, after Goto and van de Geijn ("Anatomy of
  High-Performance Matrix Multiplication", 2008). All sums are float32. Weights of 2 or 1 byte become float32 in registers;
  or, where the CPU multiplies bfloat16 in pairs, both factors stay or become that, which is exact too, at twice the rate.
  Where many rows follow, int8 becomes that once for all of them.

Each number is summed up block by block of its inputs, from the first to the last, whatever other rows there are: a row
comes out the same to the bit, alone or among others, on one thread or several.
"""

from __future__ import annotations

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
    internal,
    new_module,
    scratch,
    smaller,
)
from ring.stage.vectors import (
    LANES,
    LINE,
    VECTOR,
    fetch,
    has_pairs,
    multiply_add,
    multiply_pairs,
    read,
    read_pairs,
    registers,
    spread,
    write,
)

PANEL = LANES
"""Outputs that are stored side by side."""
UNROLL = 4
"""Inputs of one turn of the inner loop; their number must be a multiple."""
BLOCK = 256
"""Inputs after which the next rows take their turn, so that a panel's block stays in the first-level cache."""
CHUNK = 96
"""Rows whose sums are kept while a panel is worked on; the next ones read it again, from the second-level cache."""
GROUP = 4
"""A weight's panels are a multiple, and a thread does whole groups."""


def tile_shapes(dtype: torch.dtype) -> list[tuple[int, int]]:
    """Up to how many rows, and panels with so many: few rows take several panels, as one alone would wait for its own sums.
    More rows than the last has are divided."""
    if registers() < 32:
        return [(1, 4), (3, 2), (6, 1)]
    return [(4, 4), (8, paired(dtype))]


def paired(dtype: torch.dtype) -> int:
    """Inputs of this weight dtype that one instruction multiplies, which are stored side by side."""
    return 2 if dtype in (torch.bfloat16, torch.int8) and has_pairs() else 1


def factor(dtype: torch.dtype) -> torch.dtype:
    """What weights of this dtype are multiplied with."""
    return torch.bfloat16 if paired(dtype) == 2 else torch.float32


@cache
def product(dtype: torch.dtype, result: torch.dtype) -> Kernel:
    """The kernel for weights and results of these dtypes:
    `call(x, w, scale, bias, y, rows, inputs, outputs, groups, threads)`.

    `x` is the address of (rows, inputs) of the dtype `factor`, `w` of the packed weights (groups * GROUP, inputs, PANEL),
    or (groups * GROUP, inputs / 2, PANEL, 2) where they are `paired`; `bias` of float32 (outputs), and so is `scale`, which
    only int8 has; `y` of (rows, outputs), which is groups * GROUP * PANEL.
    """
    module = new_module()
    tiles, least = {}, 1
    *fewer, (most, panels) = tile_shapes(dtype)
    for up_to, several in fewer:
        for rows in range(least, up_to + 1):
            tiles[dtype, rows, several] = write_tile(module, dtype, rows, several)
        least = up_to + 1
    for weights in (dtype, factor(dtype)) if dtype == torch.int8 else (dtype,):
        for rows in range(1, most + 1):
            tiles[weights, rows, panels] = write_tile(module, weights, rows, panels)
    return compile_kernel(module, write_product(module, dtype, result, tiles))


def write_tile(module: ir.Module, dtype: torch.dtype, rows: int, panels: int) -> ir.Function:
    """`tile(x, stride of x, w, stride of panels, sums, stride of sums, inputs, next, pace)`, strides in numbers: adds to
    rows x panels * PANEL sums. For each input it asks the memory for `pace` more bytes from `next` on."""
    size, depth, x_size = dtype.itemsize, paired(dtype), factor(dtype).itemsize
    tile = internal(
        module,
        f"tile_{dtype}_{rows}_{panels}".replace(".", "_"),
        [POINTER, LONG, POINTER, LONG, POINTER, LONG, LONG, POINTER, LONG],
    )
    x, x_stride, w, w_stride, y, y_stride, inputs, ahead, pace = tile.args
    b = ir.IRBuilder(tile.append_basic_block())
    cells = [(row, panel) for row in range(rows) for panel in range(panels)]
    places = {(row, panel): address(b, y, b.add(b.mul(y_stride, LONG(row)), LONG(panel * PANEL))) for row, panel in cells}
    sums = {cell: b.alloca(VECTOR) for cell in cells}
    for cell in cells:  # from 0 in each block of inputs, as short sums are rounded less
        b.store(VECTOR([0.0] * PANEL), sums[cell])
    x_rows = [address(b, x, b.mul(x_stride, LONG(row)), x_size) for row in range(rows)]
    w_panels = [address(b, w, b.mul(w_stride, LONG(panel)), size) for panel in range(panels)]
    aheads = [address(b, ahead, b.mul(w_stride, LONG(panel)), size) for panel in range(panels)]
    with counting(b, LONG(0), inputs, LONG(UNROLL)) as first:
        for turn in range(0, UNROLL, depth):
            k = b.add(first, LONG(turn))
            takes = [address(b, panel, b.mul(k, LONG(PANEL)), size) for panel in w_panels]
            weights = [read_pairs(b, dtype, place) if depth == 2 else read(b, dtype, place) for place in takes]
            if turn * PANEL * size % LINE == 0:
                for panel in aheads:
                    fetch(b, address(b, panel, b.mul(k, pace), 1))
            for row in range(rows):
                place = address(b, x_rows[row], k, x_size)
                number = spread(b, b.load(place, typ=FLOAT if depth == 1 else INT))
                for panel in range(panels):
                    cell = sums[row, panel]
                    multiply = multiply_add if depth == 1 else multiply_pairs
                    b.store(multiply(b, number, weights[panel], b.load(cell, typ=VECTOR)), cell)
    for cell in cells:
        write(b, torch.float32, b.fadd(read(b, torch.float32, places[cell]), b.load(sums[cell], typ=VECTOR)), places[cell])
    b.ret_void()
    return tile


def write_product(
    module: ir.Module, dtype: torch.dtype, result: torch.dtype, tiles: dict[tuple[torch.dtype, int, int], ir.Function]
) -> ir.Function:
    """`product(x, w, scale, bias, y, rows, inputs, stride of y, first group, end)`.

    Panel by panel, block by block of its inputs, tile by tile of the rows: so the weights are read in order, and from
    the memory once. The rows are divided evenly into tiles, and the next block's lines evenly among these to ask for.
    """
    size, x_size = dtype.itemsize, factor(dtype).itemsize
    finish = write_finish(module, result, dtype == torch.int8)
    function = internal(module, "product", [LONG] * 10)
    x, w, scale, bias, y, rows, inputs, y_stride, first_group, end_group = function.args
    b = ir.IRBuilder(function.append_basic_block())
    sums = scratch(b, CHUNK * GROUP * PANEL)
    w_stride = b.mul(inputs, LONG(PANEL))
    *fewer, (most, least_wide) = tile_shapes(dtype)
    convert = write_convert(module, dtype, least_wide) if dtype == torch.int8 else None
    converted = scratch(b, BLOCK * PANEL * least_wide)  # float32, or half of it
    wide: ir.Value = LONG(least_wide)
    for count, panels in reversed(fewer):
        wide = b.select(b.icmp_signed("<=", rows, LONG(count)), LONG(panels), wide)
    sums_stride = b.mul(wide, LONG(PANEL))
    first, end = b.mul(first_group, LONG(GROUP)), b.mul(end_group, LONG(GROUP))
    with counting(b, first, end, wide) as panel, counting(b, LONG(0), rows, LONG(CHUNK)) as chunk:
        chunk_rows = smaller(b, b.sub(rows, chunk), LONG(CHUNK))
        turns = b.sdiv(b.add(chunk_rows, LONG(most - 1)), LONG(most))
        height = b.sdiv(b.add(chunk_rows, b.sub(turns, LONG(1))), turns)
        pace = b.sdiv(LONG(PANEL * size), turns)
        with counting(b, LONG(0), b.mul(chunk_rows, sums_stride), LONG(PANEL)) as at:
            write(b, torch.float32, VECTOR([0.0] * PANEL), address(b, sums, at))
        with counting(b, LONG(0), inputs, LONG(BLOCK)) as k:
            count = smaller(b, b.sub(inputs, k), LONG(BLOCK))
            weights = address(b, w, b.add(b.mul(panel, w_stride), b.mul(k, LONG(PANEL))), size)
            following = b.select(
                b.icmp_signed("==", b.add(k, count), inputs),
                address(b, w, b.mul(b.add(panel, wide), w_stride), size),
                address(b, weights, b.mul(count, LONG(PANEL)), size),
            )
            several = b.icmp_signed(">", turns, LONG(1))
            if convert is not None:
                with b.if_then(several):
                    b.call(convert, [weights, w_stride, converted, count, following])
            with counting(b, LONG(0), chunk_rows, height) as row:
                now = smaller(b, b.sub(chunk_rows, row), height)
                x_rows = address(b, x, b.add(b.mul(b.add(chunk, row), inputs), k), x_size)
                ahead = address(b, following, b.mul(b.mul(b.sdiv(row, height), count), pace), 1)
                sums_rows = address(b, sums, b.mul(row, sums_stride))
                for (taken, tile_rows, tile_panels), tile in tiles.items():
                    fits = b.and_(b.icmp_signed("==", now, LONG(tile_rows)), b.icmp_signed("==", wide, LONG(tile_panels)))
                    if convert is not None:
                        fits = b.and_(fits, several if taken != dtype else b.not_(several))
                    given = [weights, w_stride] if taken == dtype else [converted, LONG(BLOCK * PANEL)]
                    asked = [ahead, pace] if taken == dtype else [converted, LONG(0)]  # `convert` has asked for what follows
                    with b.if_then(fits):
                        b.call(tile, [x_rows, inputs, *given, sums_rows, sums_stride, count, *asked])
        column = b.mul(panel, LONG(PANEL))
        y_rows = address(b, y, b.add(b.mul(chunk, y_stride), column), result.itemsize)
        b.call(finish, [sums, address(b, scale, column), address(b, bias, column), y_rows, y_stride, chunk_rows, sums_stride])
    b.ret_void()
    return function


def write_convert(module: ir.Module, dtype: torch.dtype, panels: int) -> ir.Function:
    """`convert(w, stride of panels, converted, inputs, next)`: a block of some panels becomes weights of the dtype `factor`,
    BLOCK inputs a panel. It asks the memory for as many bytes from `next` on."""
    size, depth, to_size = dtype.itemsize, paired(dtype), factor(dtype).itemsize
    function = internal(module, "convert", [POINTER, LONG, POINTER, LONG, POINTER])
    w, w_stride, converted, inputs, following = function.args
    b = ir.IRBuilder(function.append_basic_block())
    for panel in range(panels):
        start, to = b.mul(w_stride, LONG(panel)), LONG(panel * BLOCK * PANEL)
        with counting(b, LONG(0), b.mul(inputs, LONG(PANEL)), LONG(UNROLL * PANEL)) as first:
            fetch(b, address(b, following, b.add(start, first), size))
            for turn in range(0, UNROLL, depth):
                at = b.add(first, LONG(turn * PANEL))
                place = address(b, w, b.add(start, at), size)
                numbers = read_pairs(b, dtype, place) if depth == 2 else read(b, dtype, place)
                b.store(numbers, address(b, converted, b.add(to, at), to_size), align=to_size)
    b.ret_void()
    return function


def write_finish(module: ir.Module, result: torch.dtype, scaled: bool) -> ir.Function:
    """`finish(sums, scale, bias, y, stride of y, rows, outputs)`: the sums, scaled and with their bias, become results."""
    function = internal(module, "finish", [POINTER, POINTER, POINTER, POINTER, LONG, LONG, LONG])
    sums, scale, bias, y, y_stride, rows, outputs = function.args
    b = ir.IRBuilder(function.append_basic_block())
    with counting(b, LONG(0), rows, LONG(1)) as row, counting(b, LONG(0), outputs, LONG(PANEL)) as at:
        numbers = read(b, torch.float32, address(b, sums, b.add(b.mul(row, outputs), at)))
        added = read(b, torch.float32, address(b, bias, at))
        if scaled:
            numbers = multiply_add(b, numbers, read(b, torch.float32, address(b, scale, at)), added)
        else:
            numbers = b.fadd(numbers, added)
        write(b, result, numbers, address(b, y, b.add(b.mul(row, y_stride), at), result.itemsize))
    b.ret_void()
    return function
