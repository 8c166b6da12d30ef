"""The line at the top: is it healthy, how fast is it."""

from __future__ import annotations

from statistics import median

from tui.state.condition import lost_stage
from tui.state.model import Model
from tui.units import NOTHING, percent, seconds
from tui.widgets.panel import Line, Panel

WORDS = {
    "connecting": ("… connecting", "$text-warning"),
    "lost": ("✗ head lost", "$text-error"),
    "refused": ("✗ refused", "$text-error"),
    "forming": ("… forming", "$text-warning"),
    "broken": ("✗ stage lost", "$text-error"),
    "mismatch": ("✗ mismatch", "$text-error"),
    "idle": ("✓ idle", "$text-success"),
    "running": ("✓ running", "$text-success"),
}
RECENT = 20


class Headline(Panel):
    """Model, state and the figures of the ring as a whole."""

    DEFAULT_CSS = "Headline { height: 1; padding: 0 1; background: $panel; }"

    def draw(self, model: Model, note: str) -> None:
        """Show the model's figures; `note` is the recording's word."""
        word, colour = WORDS[model.condition]
        lost = lost_stage(model.status)
        if model.condition == "broken" and lost is not None:
            word = f"✗ stage {lost} lost"
        left: Line = [("ring", "bold $text-accent"), "  ", (word, f"bold {colour}")]
        if note:
            left += ["  ", (note, "bold $text-accent")]
        status = model.status
        if status is None:
            self.show([left])
            return
        ended = [stream.timings for stream in model.streams.values() if stream.timings][-RECENT:]
        ttft = median([t.ttft_s for t in ended if t.ttft_s is not None] or [-1.0])
        itl = median([t.itl_s for t in ended if t.itl_s is not None] or [-1.0])
        kv = percent(status.kv_used / status.kv_tokens if status.kv_tokens else None)
        speed = f"{status.tokens_per_s:.1f} tok/s"
        load = f"KV {kv}  {status.running} running  {status.waiting} waiting"
        latency = f"TTFT {seconds(ttft) if ttft >= 0 else NOTHING}  ITL {seconds(itl) if itl >= 0 else NOTHING}"
        room = self.size.width - len(f"ring  {word}") - (len(note) + 2 if note else 0)
        right = next(
            (
                text
                for text in (
                    f"{speed}  {latency}  {load}",
                    f"{speed}  {latency}  KV {kv}  {status.running} run",
                    f"{speed}  {latency}",
                    speed,
                )
                if len(text) + 2 <= room
            ),
            "",
        )
        middle = f"  {status.model} · {len(status.stages)} stages · {status.dtype}"
        middle = middle if len(middle) + len(right) + 2 <= room else ""
        gap = max(1, room - len(middle) - len(right))
        self.show([[*left, (middle, "$muted"), " " * gap, right]])
