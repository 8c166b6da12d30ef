"""The selected stream's text, as it streams."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content

from tui.state.streams import Stream
from tui.units import NOTHING, seconds
from tui.widgets.panel import Panel

EXAMPLE = "def fibonacci(n):"
WHEN_DONE = 200_000


class Prose(Panel):
    """Wrapped text."""

    WRAPS = True
    DEFAULT_CSS = "Prose { height: auto; }"


class StreamText(VerticalScroll):
    """Prompt, answer and figures; stays at the end while it grows, unless one has scrolled up."""

    can_focus = True
    _stream: Stream | None = None

    def compose(self) -> ComposeResult:
        yield Prose(id="asked")
        yield Prose(id="answer")
        yield Prose(id="figures")

    def draw(self, stream: Stream | None, example: bool) -> None:
        """Show this stream's text, or, with `example`, what to try."""
        fresh, self._stream = stream is not self._stream, stream
        asked, answer, figures = (self.query_one(f"#{name}", Prose) for name in ("asked", "answer", "figures"))
        if stream is None:
            ready = Content.assemble(("Ready. Type a prompt below and press Enter, for example\n\n", "$muted"), EXAMPLE)
            asked.display = True
            asked.show(ready if example else Content(""))
            answer.show(Content(""))
            figures.show(Content(""))
            return
        at_end = stream.running if fresh else self.is_vertical_scroll_end
        # While it grows, only about what fits is laid out anew, again and again.
        most = max(400, self.size.width * self.size.height) if stream.running else WHEN_DONE
        text, prompt = stream.text, stream.prompt
        cut = f"… {len(text) - most:,} characters more, shown when it has ended …\n" if len(text) > most else ""
        head = f"… {len(prompt) - most:,} characters more …\n" if len(prompt) > most else ""
        # The answer goes on in the prompt's last line.
        above, _, line = prompt[-most:].rpartition("\n")
        asked.display = bool(above or head)
        asked.show(Content.assemble((head, "$muted"), (above, "bold")))
        cursor = ("▌" if stream.running else "", "$text-accent")
        answer.show(Content.assemble((line, "bold"), (cut, "$muted"), text[-most:], cursor))
        figures.show(Content.styled("\n" + footing(stream), "$text-error" if stream.outcome == "failed" else "$muted"))
        if at_end:
            self.scroll_end(animate=False, immediate=False)
            if fresh:
                self.call_after_refresh(self.scroll_end, animate=False)  # of what has been laid out by then
        elif fresh:
            self.scroll_home(animate=False, immediate=False)


def footing(stream: Stream) -> str:
    """How it stands, in a line."""
    if stream.outcome == "failed":
        return f"failed: {stream.detail}"
    prompt = f" after a prompt of {stream.prompt_tokens:,}" if stream.prompt_tokens else ""
    seed = f" · seed {stream.seed}" if stream.seed is not None and stream.options.temperature > 0 else ""
    rate = f"{stream.rate:.1f} tok/s" if stream.rate else NOTHING
    latency = f"TTFT {seconds(stream.ttft)} · ITL {seconds(stream.itl)}"
    return f"{stream.state} · {stream.tokens:,} tokens{prompt} · {rate} · {latency}{seed}"
