"""Sizes, times and rates as people write them: `16G`, `0.3ms`, `20GB/s`, `1Gbit`."""

from __future__ import annotations

import math
import re

BINARY = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
DECIMAL = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
SECONDS = {"": 1.0, "S": 1.0, "MS": 1e-3, "US": 1e-6, "NS": 1e-9}


class UnitError(ValueError):
    """A figure that cannot be read; the message is one sentence."""


def parse_size(value: str | float) -> int:
    """Bytes of memory: `16G`, `512M`, as `ring node --kv-memory` takes them, or a number."""
    return int(parse(value, r"([KMGT]?)(?:I?B)?", BINARY, "a size such as 16G or 512M"))


def parse_bandwidth(value: str | float) -> float:
    """Bytes a second: `20GB/s`, `20G` or a number."""
    return parse(value, r"([KMGT]?)(?:B(?:/S)?)?", DECIMAL, "a memory bandwidth such as 20GB/s")


def parse_network(value: str | float) -> float:
    """Bits a second: `1Gbit`, `100Mbit/s` or a number."""
    return parse(value, r"([KMGT]?)(?:BITS?(?:/S)?|BPS)?", DECIMAL, "a link's bandwidth such as 1Gbit")


def parse_flops(value: str | float) -> float:
    """Operations a second, a multiplication and an addition being two: `500G`, `1.2TFLOPS` or a number."""
    return parse(value, r"([KMGT]?)(?:FLOPS?(?:/S)?)?", DECIMAL, "a rate of computing such as 500GFLOPS")


def parse_time(value: str | float) -> float:
    """Seconds: `0.3ms`, `50us`, or a number of seconds."""
    return parse(value, r"([MUN]?S|)", SECONDS, "a time such as 0.3ms", zero=True)


def parse(value: str | float, unit: str, units: dict[str, float] | dict[str, int], what: str, zero: bool = False) -> float:
    """A number with a unit.

    Raises:
        UnitError: anything else, or a number that is not positive (`zero` allows 0).
    """
    text = str(value).strip().upper().replace("\u039c", "U")  # a micro sign's capital
    match = re.fullmatch(rf"([0-9.]+(?:E[+-]?[0-9]+)?)\s*{unit}", text, re.ASCII)
    try:
        number = float(match[1]) * units[match[2]] if match else -1.0
    except (ValueError, OverflowError):
        number = -1.0
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise UnitError(f"'{value}' is not {what}")
    return number


def show_bytes(size: float) -> str:
    """`812 GB`, `6.4 GB`, `12 MB`: decimal, as disks and weights are counted."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}" if size < 999.5 * unit else f"{size / unit:,.0f} {name}"
    return f"{size:.0f} B"


def show_time(seconds: float) -> str:
    """`1.25 s`, `48 ms`, `0.3 ms`."""
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms"


def show_rate(rate: float) -> str:
    """Tokens a second with the digits that mean something."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
