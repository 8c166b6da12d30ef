"""A study's plots; none where matplotlib is not installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ring.bench.results import middle, usual
from ring.bench.study import Cell, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cells = dict[Cell, list[Record]]


def write_plots(folder: Path, cells: Cells) -> list[Path]:
    """Draw what there are at least two points for; returns what was written."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    written = []

    def save(name: str, draw: Callable[[Axes], bool]) -> None:
        image = Figure(figsize=(5, 3.4), layout="constrained")
        if draw(image.subplots()):
            written.append(folder / f"{name}.png")
            image.savefig(written[-1], dpi=110)

    plain = usual(cells)
    for figure, label in (("rate", "new tokens a second"), ("itl_s", "seconds between tokens"), ("ttft_s", "seconds to first")):
        for axis, other in (("nodes", "batch"), ("batch", "nodes"), ("prompt", "nodes")):
            save(f"{figure.removesuffix('_s')}-by-{axis}", partial(lines, plain, figure, label, axis, other))
    save("shares", partial(shares, plain))
    save("scaling", partial(scaling, plain))
    save("straggler", partial(straggler, cells))
    return written


def lines(cells: Cells, figure: str, label: str, axis: str, other: str, plot: Axes) -> bool:
    """A figure against one axis of the grid, a line for each value of another, at the middle value of the third."""
    third = ({"nodes", "batch", "prompt"} - {axis, other}).pop()
    fixed = middle_value(cells, third)
    chosen = [cell for cell in cells if getattr(cell, third) == fixed]
    for value in sorted({getattr(cell, other) for cell in chosen}):
        line = [cell for cell in chosen if getattr(cell, other) == value]
        points = sorted((getattr(cell, axis), middle(cells[cell], figure)) for cell in line)
        plot.plot(*zip(*points, strict=True), marker="o", label=f"{other} {value}")
    plot.set(xlabel=axis, ylabel=label, title=f"{third} {fixed}", ylim=(0, None))
    plot.legend()
    return len({getattr(cell, axis) for cell in chosen}) > 1


def shares(cells: Cells, plot: Axes) -> bool:
    """What a lap's time goes into, and the share of the stages' time in which they compute nothing, against nodes."""
    prompt, batch = middle_value(cells, "prompt"), middle_value(cells, "batch")
    chosen = by_nodes(cells, prompt, batch)
    places, below = [str(cell.nodes) for cell in chosen], [0.0] * len(chosen)
    for figure in ("compute", "queue", "wire"):
        heights = [100 * middle(cells[cell], figure) for cell in chosen]
        plot.bar(places, heights, bottom=below, label=figure)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    plot.plot(places, [100 * middle(cells[cell], "idle") for cell in chosen], color="black", marker="o", label="bubble")
    plot.set(xlabel="nodes", ylabel="% of laps; bubble: % of stages", title=f"prompt {prompt}, batch {batch}", ylim=(0, 105))
    plot.legend()
    return len(chosen) > 1


def scaling(cells: Cells, plot: Axes) -> bool:
    """Times as fast as one node, against nodes, beside as many times as there are nodes."""
    prompt, most = middle_value(cells, "prompt"), 1
    for batch in sorted({cell.batch for cell in cells}):
        alone = cells.get(Cell(1, prompt, batch))
        line = by_nodes(cells, prompt, batch)
        if alone and len(line) > 1:
            most = max(most, line[-1].nodes)
            gains = [middle(cells[cell], "rate") / middle(alone, "rate") for cell in line]
            plot.plot([cell.nodes for cell in line], gains, marker="o", label=f"batch {batch}")
    plot.plot([1, most], [1, most], color="grey", linestyle="--", label="ideal")
    plot.set(xlabel="nodes", ylabel="times as fast as one", title=f"prompt {prompt}", ylim=(0, None))
    plot.legend()
    return most > 1


def straggler(cells: Cells, plot: Axes) -> bool:
    """The rate against how many times as slow the last node is."""
    slowed = [cell for cell in cells if cell.slow > 1]
    if not slowed:
        return False
    some = slowed[0]
    points = sorted(
        (cell.slow, middle(records, "rate"))
        for cell, records in cells.items()
        if (cell.nodes, cell.prompt, cell.batch, cell.lost) == (some.nodes, some.prompt, some.batch, False)
    )
    plot.plot(*zip(*points, strict=True), marker="o")
    title = f"{some.nodes} nodes, prompt {some.prompt}, batch {some.batch}"
    plot.set(xlabel="times as slow", ylabel="new tokens a second", title=title, ylim=(0, None))
    return len(points) > 1


def by_nodes(cells: Cells, prompt: int, batch: int) -> list[Cell]:
    """Those of one prompt and batch, the smallest ring first."""
    return sorted((cell for cell in cells if (cell.prompt, cell.batch) == (prompt, batch)), key=lambda cell: cell.nodes)


def middle_value(cells: Cells, axis: str) -> int:
    """The middle one of an axis's values."""
    values = sorted({getattr(cell, axis) for cell in cells})
    return int(values[len(values) // 2])
