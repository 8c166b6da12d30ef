"""Numbers and texts as people read them: fixed precision, a unit on every one, nothing that upsets a terminal."""

from __future__ import annotations

from rich.cells import cell_len

NOTHING = "–"
BLOCKS = " ▁▂▃▄▅▆▇█"
HUES = ("#6487c4", "#b07698", "#549682", "#b8935a", "#8b7dba", "#5690a3", "#b0755f", "#849458")
"""One for each microbatch in turn: of middling lightness, so that they read on a dark and on a light ground."""

# A model's output may hold any character; an escape sequence must not reach the terminal, nor may text run backwards.
_CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_CONTROLS |= dict.fromkeys([*range(0x80, 0xA0), *range(0x200E, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)


def ms(ns: float | None) -> str:
    """Nanoseconds as milliseconds, with the unit."""
    return NOTHING if ns is None else f"{bare_ms(ns)} ms"


def bare_ms(ns: float | None) -> str:
    """Nanoseconds as milliseconds, for a column whose heading has the unit."""
    if ns is None:
        return NOTHING
    value = ns / 1e6
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """Seconds, or milliseconds below one."""
    if value is None:
        return NOTHING
    if value < 0.9995:
        return f"{value * 1e3:.1f} ms" if value < 0.09995 else f"{value * 1e3:.0f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"


def size(count: float) -> str:
    """Bytes in the unit that leaves few digits."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def percent(share: float | None) -> str:
    """A share of one."""
    return NOTHING if share is None else f"{share * 100:.0f} %"


def parts_of(parts: list[float], digits: int = 2) -> list[str]:
    """Numbers rounded so that, as they are shown, they add up to their rounded sum (largest remainders round up)."""
    scale = 10**digits
    floors = [int(part * scale) for part in parts]
    short = round(sum(parts) * scale) - sum(floors)
    by_remainder = sorted(range(len(parts)), key=lambda index: floors[index] - parts[index] * scale)
    for index in by_remainder[: max(0, short)]:
        floors[index] += 1
    return [f"{floor / scale:.{digits}f}" for floor in floors]


def sparkline(values: list[float], top: float = 1.0) -> str:
    """One character for each value, `top` being a full block; anything above nothing is seen."""
    heights = [min(8, max(1, round(value / top * 8))) if value > 0 else 0 for value in values]
    return "".join(BLOCKS[height] for height in heights)


def printable(text: str) -> str:
    """The text with every control character replaced by a visible one, character by character."""
    return text if text.isprintable() else text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """The beginning of a text on one line, with its line ends marked."""
    return printable(text[:200].strip().replace("\n", "⏎").replace("\t", " "))


def tail_of(text: str, width: int) -> str:
    """The end of a text on one line of so many cells."""
    line = printable(text[-2 * width :].strip().replace("\n", "⏎").replace("\t", " "))
    whole = len(text) <= 2 * width
    while cell_len(line) > width - 2 * (not whole):
        line, whole = line[1:], False
    return line if whole else f"… {line}"
