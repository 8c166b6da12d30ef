"""The product of a linear layer, `y += x Wᵀ`, as fast as the memory gives the weights.

At decode a stage reads every weight once for a few rows. The general libraries are made for many rows and take up to
twice as long as the memory does. Here it is two ideas:

- Panels: the weight is stored as panels of 16 outputs, a panel as its 16 weights for input 0, then for input 1, and so
  on. So a product reads the weights from the first to the last, whatever the number of rows, and asks the memory for the
  next block while it multiplies this one.
- Tiles: up to 6 rows x 16 outputs are summed up in registers, after Goto and van de Geijn ("Anatomy of High-Performance
  Matrix Multiplication", 2008). Weights of 2 or 1 byte become float32 in registers; all sums are float32.

Each number is summed up block by block of its inputs, from the first to the last, whatever other rows there are: a row
comes out the same to the bit, alone or among others, on one thread or several.
"""

from __future__ import annotations

from functools import cache

import torch
from llvmlite import ir

from ring.stage.compiler import (
    FLOAT,
    LANES,
    LINE,
    LONG,
    POINTER,
    VECTOR,
    Kernel,
    address,
    compile_kernel,
    counting,
    fetch,
    internal,
    multiply_add,
    new_module,
    read,
    smaller,
    spread,
    write,
)

PANEL = LANES
"""Outputs that are stored side by side."""
UNROLL = 4
"""Inputs of one turn of the inner loop; their number must be a multiple."""
BLOCK = 256
"""Inputs after which the next rows take their turn, so that a panel's block stays in the first-level cache."""
TILES = {1: 4, 2: 2, 3: 2, 4: 1, 5: 1, 6: 1}
"""Rows of a tile -> panels: with few rows several panels are summed at once, as one alone would wait for its own sums."""
GROUP = max(TILES.values())
"""A weight's panels are a multiple, and a thread does whole groups."""


@cache
def product(dtype: torch.dtype) -> Kernel:
    """The kernel for weights of this dtype: `call(x, w, y, rows, inputs, outputs, groups, threads)`.

    `x` is the address of float32 (rows, inputs), `w` of the packed weights (groups * GROUP, inputs, PANEL), `y` of
    float32 (rows, outputs), which is added to; `outputs` is groups * GROUP * PANEL.
    """
    module = new_module()
    tiles = {(rows, panels): write_tile(module, dtype, rows, panels) for rows, wide in TILES.items() for panels in {wide, 1}}
    return compile_kernel(module, write_product(module, dtype, tiles))


def write_tile(module: ir.Module, dtype: torch.dtype, rows: int, panels: int) -> ir.Function:
    """`tile(x, stride of x, w, stride of panels, y, stride of y, inputs, next, pace)`, strides in numbers: adds to
    rows x panels * PANEL sums. For each input it asks the memory for `pace` more bytes from `next` on."""
    size = dtype.itemsize
    tile = internal(module, f"tile_{rows}_{panels}", [POINTER, LONG, POINTER, LONG, POINTER, LONG, LONG, POINTER, LONG])
    x, x_stride, w, w_stride, y, y_stride, inputs, ahead, pace = tile.args
    b = ir.IRBuilder(tile.append_basic_block())
    cells = [(row, panel) for row in range(rows) for panel in range(panels)]
    places = {(row, panel): address(b, y, b.add(b.mul(y_stride, LONG(row)), LONG(panel * PANEL))) for row, panel in cells}
    sums = {cell: b.alloca(VECTOR) for cell in cells}
    for cell in cells:  # from 0 in each block of inputs, as short sums are rounded less
        b.store(VECTOR([0.0] * PANEL), sums[cell])
    x_rows = [address(b, x, b.mul(x_stride, LONG(row))) for row in range(rows)]
    w_panels = [address(b, w, b.mul(w_stride, LONG(panel)), size) for panel in range(panels)]
    aheads = [address(b, ahead, b.mul(w_stride, LONG(panel)), size) for panel in range(panels)]
    with counting(b, LONG(0), inputs, LONG(UNROLL)) as first:
        for turn in range(UNROLL):
            k = b.add(first, LONG(turn))
            weights = [read(b, dtype, address(b, panel, b.mul(k, LONG(PANEL)), size)) for panel in w_panels]
            if turn * PANEL * size % LINE == 0:
                for panel in aheads:
                    fetch(b, address(b, panel, b.mul(k, pace), 1))
            for row in range(rows):
                number = spread(b, b.load(address(b, x_rows[row], k), typ=FLOAT))
                for panel in range(panels):
                    cell = sums[row, panel]
                    b.store(multiply_add(b, number, weights[panel], b.load(cell, typ=VECTOR)), cell)
    for cell in cells:
        write(b, b.fadd(read(b, torch.float32, places[cell]), b.load(sums[cell], typ=VECTOR)), places[cell])
    b.ret_void()
    return tile


def write_product(module: ir.Module, dtype: torch.dtype, tiles: dict[tuple[int, int], ir.Function]) -> ir.Function:
    """`product(x, w, y, rows, inputs, stride of y, first group, end)`.

    Panel by panel, block by block of its inputs, tile by tile of the rows: so the weights are read in order, and from
    the memory once. The rows are divided evenly into tiles, and the next block's lines evenly among these to ask for.
    """
    size = dtype.itemsize
    function = internal(module, "product", [LONG] * 8)
    x, w, y, rows, inputs, y_stride, first_group, end_group = function.args
    b = ir.IRBuilder(function.append_basic_block())
    w_stride = b.mul(inputs, LONG(PANEL))
    most = max(TILES)
    turns = b.sdiv(b.add(rows, LONG(most - 1)), LONG(most))
    height = b.sdiv(b.add(rows, b.sub(turns, LONG(1))), turns)
    pace = b.sdiv(LONG(PANEL * size), turns)
    wide: ir.Value = LONG(1)
    for count, together in TILES.items():
        wide = b.select(b.icmp_signed("==", rows, LONG(count)), LONG(together), wide)
    first, end = b.mul(first_group, LONG(GROUP)), b.mul(end_group, LONG(GROUP))
    with counting(b, first, end, wide) as panel, counting(b, LONG(0), inputs, LONG(BLOCK)) as k:
        count = smaller(b, b.sub(inputs, k), LONG(BLOCK))
        weights = address(b, w, b.add(b.mul(panel, w_stride), b.mul(k, LONG(PANEL))), size)
        following = address(b, weights, b.mul(count, LONG(PANEL)), size)
        with counting(b, LONG(0), rows, height) as row:
            now = smaller(b, b.sub(rows, row), height)
            x_rows = address(b, x, b.add(b.mul(row, inputs), k))
            y_rows = address(b, y, b.add(b.mul(row, y_stride), b.mul(panel, LONG(PANEL))))
            ahead = address(b, following, b.mul(b.mul(b.sdiv(row, height), count), pace), 1)
            for (tile_rows, tile_panels), tile in tiles.items():
                fits = b.and_(b.icmp_signed("==", now, LONG(tile_rows)), b.icmp_signed("==", wide, LONG(tile_panels)))
                with b.if_then(fits):
                    b.call(tile, [x_rows, inputs, weights, w_stride, y_rows, y_stride, count, ahead, pace])
    b.ret_void()
    return function
