"""Two calm themes; Textual's own are in the command palette."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="ring-dark",
    primary="#6d9bf1",
    secondary="#5fb3a1",
    accent="#e0a458",
    foreground="#d5d9e0",
    background="#12151b",
    surface="#181c24",
    panel="#222835",
    success="#7cb87c",
    warning="#dba650",
    error="#e0697a",
    dark=True,
    variables={"muted": "#7f8899", "faint": "#414a5b"},
)
LIGHT = Theme(
    name="ring-light",
    primary="#2f62c4",
    secondary="#1f7a68",
    accent="#a8610b",
    foreground="#23272f",
    background="#fafaf7",
    surface="#f1f1ec",
    panel="#e3e4de",
    success="#2f7d38",
    warning="#9a6205",
    error="#b3263c",
    dark=False,
    variables={"muted": "#6d737d", "faint": "#bfc2c4"},
)
FALLBACK = {"muted": "#808793", "faint": "#606671"}
"""For themes that are not ours: `muted` is for words that one need not read, `faint` for what is there to be empty."""
