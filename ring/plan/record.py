"""Writes a profile into `machines.toml`, leaving everything else in the file as it is, comments too."""

from __future__ import annotations

from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError

from ring.plan.machines import MachineError
from ring.plan.profile import Profile

HEADER = "The machines of a ring, in its order; written by `ring profile`, read by `ring plan`, and yours to edit."


def record(path: Path, found: Profile) -> None:
    """Add this machine to the file, or bring its entry up to date; several nodes on it become as many entries.

    Raises:
        MachineError: the file cannot be read or written.
    """
    try:
        document = tomlkit.parse(path.read_text()) if path.exists() else tomlkit.document()
    except (OSError, TOMLKitError) as error:
        raise MachineError(f"{path} cannot be read: {error}") from None
    if not path.exists():
        document.add(tomlkit.comment(HEADER))
    machines = document.setdefault("machines", tomlkit.aot())
    if not isinstance(machines, tomlkit.items.AoT):
        raise MachineError(f"{path}: 'machines' is no list of tables; write each as [[machines]]")
    for number in range(found.nodes):
        name = found.name if found.nodes == 1 else f"{found.name}-{number}"
        entry = next((entry for entry in machines if entry.get("name") == name), None)
        if entry is None:
            entry = tomlkit.table()
            machines.append(entry)
            entry = machines[-1]
        fill(entry, name, found)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(tomlkit.dumps(document))
        partial.replace(path)
    except OSError as error:
        raise MachineError(f"{path} cannot be written ({error.strerror})") from None


def fill(entry: tomlkit.items.Table, name: str, found: Profile) -> None:
    """Set what was measured."""
    entry["name"] = name
    entry["memory"] = f"{found.memory / found.nodes / (1 << 30):.2f}G"
    entry["threads"] = found.threads
    entry["bandwidth"] = f"{found.bandwidth / 1e9:.4g}GB/s"
    entry["layer_overhead"] = f"{found.layer_overhead * 1e6:.4g}us"
    entry["run_overhead"] = f"{found.run_overhead * 1e6:.4g}us"
    if found.latency is not None and found.network is not None:
        entry["latency"] = f"{found.latency * 1e3:.4g}ms"
        entry["network"] = f"{found.network / 1e9:.4g}Gbit"
    if found.nodes > 1:
        entry["host"] = found.name
        entry["address"] = found.name
        entry["at_once"] = round(found.at_once, 3)
    linear = tomlkit.table()
    for dtype, rates in found.linear.items():
        table = tomlkit.table()
        table.comment("weights a second, by rows")
        for rows, rate in rates.items():
            table.add(str(rows), f"{rate / 1e9:.4g}GB/s")
        linear[dtype] = table
    entry["linear"] = linear
