"""A study's results for people: a table as CSV and a report in Markdown."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import msgspec

from ring.bench.plots import write_plots
from ring.bench.results import by_cell, middle, usual
from ring.bench.study import ENVIRONMENT, Cell, Record, read_records

FIGURES = ("rate", "decode_rate", "ttft_s", "itl_s", "itl_p99_s", "gap_s", "wall_s", "compute", "queue", "wire", "idle")


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


def write_csv(path: Path, cells: dict[Cell, list[Record]]) -> Path:
    """One row a cell: medians, and the spread of the rate."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["nodes", "prompt", "batch", "slow", "lost", "rounds", *FIGURES, "rate_min", "rate_max"])
        for cell, records in cells.items():
            rates = [record.rate for record in records]
            figures = [f"{middle(records, figure):.6g}" for figure in FIGURES]
            spread = [f"{min(rates):.6g}", f"{max(rates):.6g}"]
            rows.writerow([cell.nodes, cell.prompt, cell.batch, cell.slow, int(cell.lost), len(records), *figures, *spread])
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
    plain = usual(cells)
    lines += [row(cell, records) for cell, records in plain.items()]
    lines += ["", *scaling(plain), *stragglers(cells), *losses(cells)]
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
        healthy = cells.get(Cell(cell.nodes, cell.prompt, cell.batch))
        if cell.slow > 1 and healthy:
            share = middle(records, "rate") / middle(healthy, "rate")
            lines.append(f"| {cell.nodes} | {cell.slow:g} | {middle(records, 'rate'):.1f} | {share:.0%} |")
    if not lines:
        return []
    head = ["## One node slowed", "", "| nodes | times as slow | tokens/s | of the usual rate |", "| --: | --: | --: | --: |"]
    return [*head, *lines, ""]


def losses(cells: dict[Cell, list[Record]]) -> list[str]:
    """What a node costs that is killed and comes back: how much longer the round takes, and how long a stream waits."""
    lines = []
    for cell, records in cells.items():
        healthy = cells.get(Cell(cell.nodes, cell.prompt, cell.batch))
        if cell.lost and healthy:
            walls = (middle(healthy, "wall_s"), middle(records, "wall_s"))
            lines.append(f"| {cell.nodes} | {walls[0]:.2f} | {walls[1]:.2f} | {middle(records, 'gap_s'):.2f} |")
    if not lines:
        return []
    head = ["## A node killed and started again", "", "| nodes | usual s | with the loss s | longest wait for a token s |"]
    return [*head, "| --: | --: | --: | --: |", *lines, ""]
