"""The machines of a ring, as `machines.toml` describes them and `ring profile` measures them.

[[machines]]
name = "alpha"
memory = "16G"            # for this ring: what is free, not what is built in
bandwidth = "20GB/s"      # reading weights, all threads of a node together
compute = "300GFLOPS"     # multiplying matrices at prefill sizes
latency = "0.3ms"         # of a message to the next machine, one way
network = "1Gbit"         # of that link
"""

from __future__ import annotations

import math
import tomllib
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ring.plan.units import UnitError, parse_bandwidth, parse_flops, parse_network, parse_size, parse_time
from weights_tools.facts import ITEM_BYTES

BANDWIDTH, LATENCY, NETWORK = 20e9, 0.3e-3, 1e9
"""What is assumed of a machine of which nothing else is known: a laptop's memory, on a wired home network."""
FLOPS_PER_BYTE = 10.0
"""Operations that a CPU does in the time of reading a byte, where its rate of computing is not known."""


class MachineError(ValueError):
    """Machines that cannot be planned with; the message is one sentence."""


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One machine, as fast as a node on it is when nothing else runs there.

    Args:
        memory: bytes that the node may take, all told.
        bandwidth: bytes of weights that a decode step reads a second.
        compute: operations a second at prefill sizes, for each dtype.
        linear: what was measured instead: for each dtype, bytes of weights a second at so many rows.
        layer_overhead, run_overhead: seconds that each layer, and each sequence in each layer, costs beside that.
        latency, network: of the link to the next machine: seconds one way, bits a second.
        host: nodes with the same `host` share one computer, which runs `at_once` of them at full speed.
        address: what the others reach it by; its name, if not given.
    """

    name: str
    memory: int
    bandwidth: float = BANDWIDTH
    compute: dict[str, float] = {}
    linear: dict[str, dict[int, float]] = {}
    layer_overhead: float = 0.0
    run_overhead: float = 0.0
    latency: float = LATENCY
    network: float = NETWORK
    host: str = ""
    at_once: float = 1.0
    address: str = ""
    threads: int | None = None

    @property
    def reached_at(self) -> str:
        """Host name or IP address."""
        return self.address or self.name

    def seconds_per_byte(self, dtype: str, rows: float) -> float:
        """How long a linear layer takes for each byte of its weights, with so many rows: as measured, between two
        measured sizes in proportion; else the roofline, `max(1 / bandwidth, operations / compute)`."""
        measured = self.linear.get(dtype)
        if not measured:
            return max(1 / self.bandwidth, 2 * rows / (ITEM_BYTES[dtype] * self.flops(dtype)))
        sizes = sorted(measured)
        at = bisect_left(sizes, rows)
        if at == 0:
            return 1 / measured[sizes[0]]
        if at == len(sizes):  # longer than any measured: each further row takes what a row took
            return rows / sizes[-1] / measured[sizes[-1]]
        low, high = sizes[at - 1], sizes[at]
        share = (rows - low) / (high - low)
        return (1 - share) / measured[low] + share / measured[high]

    def flops(self, dtype: str) -> float:
        """Operations a second at prefill sizes."""
        measured = self.linear.get(dtype)
        if measured:
            rows = max(measured)
            return 2 * rows / ITEM_BYTES[dtype] * measured[rows]
        return self.compute.get(dtype) or max(self.compute.values(), default=FLOPS_PER_BYTE * self.bandwidth)


PARSERS: dict[str, Callable[[Any], float]] = {
    "memory": parse_size,
    "bandwidth": parse_bandwidth,
    "latency": parse_time,
    "network": parse_network,
    "layer_overhead": parse_time,
    "run_overhead": parse_time,
}


def read_machines(path: Path) -> list[Machine]:
    """The machines of a file, in the order of the ring.

    Raises:
        MachineError, UnitError: a file that is not there or not of this form.
    """
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise MachineError(f"{path} cannot be read ({error.strerror}); `ring profile` writes one") from None
    except ValueError as error:
        raise MachineError(f"{path} is no TOML: {error}") from None
    entries = table.get("machines")
    if not isinstance(entries, list) or not entries:
        raise MachineError(f"{path} names no machine; each begins with a line [[machines]]")
    machines = [machine_of(entry, f"{path}: machine {number}") for number, entry in enumerate(entries, 1)]
    for machine in machines:
        if sum(other.name == machine.name for other in machines) > 1:
            raise MachineError(f"{path} has two machines called '{machine.name}'; give each a name of its own")
    return machines


def machine_of(entry: object, where: str) -> Machine:
    """One entry of the file, units read.

    Raises:
        MachineError, UnitError: it cannot be understood.
    """
    if not isinstance(entry, dict):
        raise MachineError(f"{where} is no table; begin it with a line [[machines]]")
    try:
        fields = {key: PARSERS[key](value) if key in PARSERS else value for key, value in entry.items()}
        if "compute" in fields:
            fields["compute"] = compute_of(fields["compute"])
        if "linear" in fields:
            fields["linear"] = linear_of(fields["linear"])
        machine = msgspec.convert(fields, Machine)
    except (UnitError, msgspec.ValidationError) as error:
        raise MachineError(f"{where}: {str(error)[:1].lower()}{str(error)[1:]}") from None
    if not machine.name or not 0 < machine.at_once < math.inf:
        raise MachineError(f"{where} has an empty name or an `at_once` that is not positive")
    if machine.threads is not None and machine.threads < 1:
        raise MachineError(f"{where} has `threads` = {machine.threads}; a node needs one at least")
    return machine


def compute_of(value: object) -> dict[str, float]:
    """`compute`: one rate for every dtype, or a table of them.

    Raises:
        UnitError: it cannot be understood.
    """
    if isinstance(value, str | int | float):
        return {"": parse_flops(value)}
    if not isinstance(value, dict):
        raise UnitError("`compute` is a rate such as 500GFLOPS, or a table with one for each dtype")
    return {known_dtype(dtype): parse_flops(rate) for dtype, rate in value.items()}


def linear_of(value: object) -> dict[str, dict[int, float]]:
    """`linear`: for each dtype, rates by rows.

    Raises:
        UnitError: it cannot be understood.
    """
    if not isinstance(value, dict) or not all(isinstance(rates, dict) for rates in value.values()):
        raise UnitError('`linear` is a table for each dtype, with lines as 8 = "20GB/s"')
    for dtype, rates in value.items():
        known_dtype(dtype)
        for rows in rates:
            if not str(rows).isdecimal() or int(rows) < 1:
                raise UnitError(f"`linear.{dtype}` has '{rows}', which is no number of rows")
    return {dtype: {int(rows): parse_bandwidth(rate) for rows, rate in rates.items()} for dtype, rates in value.items()}


def known_dtype(name: str) -> str:
    """The dtype's own name.

    Raises:
        UnitError: there is none of that name.
    """
    if name not in ITEM_BYTES:
        raise UnitError(f"'{name}' is no dtype; use one of {', '.join(ITEM_BYTES)}")
    return name


def equal_machines(count: int, memory: str, bandwidth: str, compute: str | None, latency: str, network: str) -> list[Machine]:
    """So many of a kind, called node-0, node-1, …

    Raises:
        UnitError: a figure that cannot be read.
    """
    machine = Machine(
        name="",
        memory=parse_size(memory),
        bandwidth=parse_bandwidth(bandwidth),
        compute={} if compute is None else {"": parse_flops(compute)},
        latency=parse_time(latency),
        network=parse_network(network),
    )
    return [msgspec.structs.replace(machine, name=f"node-{number}") for number in range(count)]
