"""A study's results for people: a table as CSV, a report in Markdown, and plots."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from ring.bench.study import ENVIRONMENT, Cell, Record, read_records

FIGURES = ("rate", "decode_rate", "ttft_s", "itl_s", "itl_p99_s", "wall_s", "compute", "queue", "wire", "idle")


def write_report(folder: Path) -> list[Path]:
    """Make `results.csv`, `report.md` and the plots from what a study's folder holds; returns what was written."""
    cells = by_cell(read_records(folder))
    if not cells:
        return []
    environment = msgspec.json.decode((folder / ENVIRONMENT).read_bytes())
    written = [write_csv(folder / "results.csv", cells)]
    plots = write_plots(folder, cells)
    (folder / "report.md").write_text(markdown(environment, cells, [plot.name for plot in plots]))
    return [*written, folder / "report.md", *plots]


def by_cell(records: list[Record]) -> dict[Cell, list[Record]]:
    """Records of the same cell together, in the grid's order."""
    cells: dict[Cell, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (r.slow, r.nodes, r.prompt, r.batch, r.repeat)):
        cells[record.cell].append(record)
    return cells


def middle(records: Sequence[Record], figure: str) -> float:
    """The median of a figure over a cell's rounds; 0 where there is none."""
    values = [value for record in records if (value := getattr(record, figure)) is not None]
    return median(values) if values else 0.0


def write_csv(path: Path, cells: dict[Cell, list[Record]]) -> Path:
    """One row a cell: medians, and the spread of the rate."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["nodes", "prompt", "batch", "slow", "rounds", *FIGURES, "rate_min", "rate_max"])
        for cell, records in cells.items():
            rates = [record.rate for record in records]
            figures = [f"{middle(records, figure):.6g}" for figure in FIGURES]
            spread = [f"{min(rates):.6g}", f"{max(rates):.6g}"]
            rows.writerow([cell.nodes, cell.prompt, cell.batch, cell.slow, len(records), *figures, *spread])
    return path


def markdown(environment: dict[str, Any], cells: dict[Cell, list[Record]], plots: list[str]) -> str:
    """The report."""
    e = environment
    rounds = sorted({len(records) for records in cells.values()})
    lines = [
        f"# {e['shape']} in {e['dtype']}, random weights, {e['new_tokens']} new tokens, greedy",
        "",
        f"{e['cpu']}, {e['cores']} cores ({e['isa']}), {e['memory_gb']} GB; Python {e['python']}, torch {e['torch']}, "
        f"transformers {e['transformers']}, ring {e['ring']}; seed {e['seed']}; one thread a node, all nodes on this machine; "
        f"medians of {' to '.join(map(str, rounds))} rounds. Rate: all new tokens over wall time, prefill included.",
        "",
        "| nodes | prompt | batch | tokens/s (min-max) | decode tokens/s | first token s | between tokens ms (p99) "
        "| compute | queue | wire | idle |",
        "| --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    plain = {cell: records for cell, records in cells.items() if cell.slow == 1}
    lines += [row(cell, records) for cell, records in plain.items()]
    lines += ["", *scaling(plain), *stragglers(cells)]
    lines += [f"![{plot}]({plot})" for plot in plots]
    return "\n".join(lines) + "\n"


def row(cell: Cell, records: list[Record]) -> str:
    """A cell's line in the table."""
    rates = [record.rate for record in records]
    m = {figure: middle(records, figure) for figure in FIGURES}
    decode = f"{m['decode_rate']:.1f}" if m["decode_rate"] else "-"
    return (
        f"| {cell.nodes} | {cell.prompt} | {cell.batch} | {m['rate']:.1f} ({min(rates):.1f}-{max(rates):.1f}) | {decode} "
        f"| {m['ttft_s']:.2f} | {m['itl_s'] * 1e3:.0f} ({m['itl_p99_s'] * 1e3:.0f}) "
        f"| {m['compute']:.0%} | {m['queue']:.0%} | {m['wire']:.1%} | {m['idle']:.0%} |"
    )


def scaling(cells: dict[Cell, list[Record]]) -> list[str]:
    """Efficiency: the rate of n nodes over n times that of one, where both were measured."""
    lines = []
    for cell, records in cells.items():
        alone = cells.get(Cell(1, cell.prompt, cell.batch))
        if alone and cell.nodes > 1:
            gain = middle(records, "rate") / middle(alone, "rate")
            efficiency = f"{gain / cell.nodes:.0%}"
            lines.append(f"| {cell.nodes} | {cell.prompt} | {cell.batch} | {gain:.2f} | {efficiency} |")
    if not lines:
        return []
    head = ["## Scaling, against one node", "", "| nodes | prompt | batch | times as fast | efficiency |"]
    return [*head, "| --: | --: | --: | --: | --: |", *lines, ""]


def stragglers(cells: dict[Cell, list[Record]]) -> list[str]:
    """What one slow node costs all."""
    lines = []
    for cell, records in cells.items():
        usual = cells.get(Cell(cell.nodes, cell.prompt, cell.batch))
        if cell.slow > 1 and usual:
            share = middle(records, "rate") / middle(usual, "rate")
            lines.append(f"| {cell.nodes} | {cell.slow:g} | {middle(records, 'rate'):.1f} | {share:.0%} |")
    if not lines:
        return []
    head = ["## One node slowed", "", "| nodes | times as slow | tokens/s | of the usual rate |", "| --: | --: | --: | --: |"]
    return [*head, *lines, ""]


def write_plots(folder: Path, cells: dict[Cell, list[Record]]) -> list[Path]:
    """Rate and latency against nodes, batch and prompt length; none where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    plain = {cell: records for cell, records in cells.items() if cell.slow == 1}
    written = []
    for figure, label in (("rate", "new tokens a second"), ("itl_s", "seconds between tokens"), ("ttft_s", "seconds to first")):
        for axis, other in (("nodes", "batch"), ("batch", "nodes"), ("prompt", "nodes")):
            third = ({"nodes", "batch", "prompt"} - {axis, other}).pop()
            fixed = most_common(plain, third)
            chosen = [cell for cell in plain if getattr(cell, third) == fixed]
            if len({getattr(cell, axis) for cell in chosen}) < 2:
                continue
            image = Figure(figsize=(5, 3.4), layout="constrained")
            plot = image.subplots()
            for value in sorted({getattr(cell, other) for cell in chosen}):
                line = [cell for cell in chosen if getattr(cell, other) == value]
                points = sorted((getattr(cell, axis), middle(plain[cell], figure)) for cell in line)
                plot.plot(*zip(*points, strict=True), marker="o", label=f"{value} {other}")
            plot.set(xlabel=axis, ylabel=label, title=f"{third} {fixed}", ylim=(0, None))
            plot.legend()
            path = folder / f"{figure.removesuffix('_s')}-by-{axis}.png"
            image.savefig(path, dpi=110)
            written.append(path)
    return written


def most_common(cells: dict[Cell, list[Record]], axis: str) -> int:
    """The middle one of an axis's values."""
    values = sorted({getattr(cell, axis) for cell in cells})
    return int(values[len(values) // 2])
