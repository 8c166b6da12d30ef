"""All prompts and answers as one Markdown text."""

from __future__ import annotations

from collections.abc import Iterable

from tui.state.streams import Stream
from tui.units import seconds


def transcript(streams: Iterable[Stream], model: str) -> str:
    """One section for each prompt: how it was sampled, what came, how long it took."""
    sections = [f"# {model or 'ring'}\n"]
    for stream in streams:
        options = stream.options
        sampling = (
            f"max {options.max_tokens}, temperature {options.temperature:g}, top-p {options.top_p:g}, top-k {options.top_k}"
        )
        seed = f", seed {stream.seed}" if stream.seed is not None else ""
        figures = f"{stream.state}, {stream.tokens} tokens, TTFT {seconds(stream.ttft)}, ITL {seconds(stream.itl)}"
        failure = f"\n\n{stream.detail}" if stream.detail else ""
        fence = fence_for(stream.prompt + stream.text)
        text = f"{fence}\n{stream.prompt}\n{fence}\n\n{fence}\n{stream.text}\n{fence}"
        sections.append(f"## {stream.number}\n\n{sampling}{seed}\n\n{text}\n\n{figures}{failure}\n")
    return "\n".join(sections)


def fence_for(text: str) -> str:
    """A run of backticks longer than any in the text."""
    longest = current = 0
    for character in text:
        current = current + 1 if character == "`" else 0
        longest = max(longest, current)
    return "`" * max(3, longest + 1)
