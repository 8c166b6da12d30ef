"""Keys, what each figure means and how it is measured."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

HELP = (
    (
        "Everywhere",
        (
            ("1 2 3 4", "overview, waterfall, trace of a token, events"),
            ("/", "to the prompt; Escape goes back"),
            ("^O", "sampling options of the next prompts"),
            ("^P", "all commands; themes, screenshot"),
            ("d", "dark or light"),
            ("F1 ?", "this help"),
            ("q ^Q", "quit; ^Q also from the prompt"),
        ),
    ),
    (
        "Prompt",
        (
            ("Enter", "send"),
            ("^J", "new line; a paste of many lines is one prompt"),
            ("↑ ↓", "what was asked before"),
            ("Escape", "to the list of prompts"),
        ),
    ),
    (
        "List of prompts, trace",
        (
            ("↑ ↓", "select a prompt"),
            ("x", "cancel it, on every stage"),
            ("y", "copy its text, over ssh too (OSC 52)"),
            ("r e", "ask again as it was; edit and ask"),
            ("s", "save the transcript of all prompts"),
            ("← →", "in the trace: the token before or after"),
            ("Home End", "in the trace: the first token; follow the newest"),
        ),
    ),
    (
        "Waterfall",
        (
            ("Space", "pause, and go on"),
            ("← →", "pick a lap and read its numbers"),
            ("+ -", "zoom"),
            ("PgUp PgDn", "scroll through time; Home oldest, End live"),
        ),
    ),
    ("Replay", (("[ ]", "slower, down to a halt; faster"),)),
    (
        "What the figures mean",
        (
            ("lap", "once around the ring, head to head, on the head's clock; queue + compute + send + wire is the lap"),
            ("queue", "from a message's arrival at a stage until the stage begins with it"),
            ("compute", "the stage's forward pass, on the last stage with sampling"),
            ("send", "from the end of compute until the message is handed on for encoding"),
            ("wire", "from then until the next stage has it: encoding, sending, network, receiving"),
            ("busy", "share of the time in which the ring had work that the stage computed"),
            ("wait", "share in which it had no input: the pipeline bubble"),
            ("block", "share in which it had input but was still sending the microbatch before"),
            ("p50 p95", "of the last minute, within 1 %"),
            ("tok/s", "in the headline new tokens a second over ten seconds, as `ring status`; of a stage, tokens through it"),
            ("TTFT", "time to first token, from arrival at the head; in the headline the median of the last 20 prompts"),
            ("ITL", "mean inter-token latency of a prompt; in the headline the median of the last 20"),
            ("KV", "tokens reserved in the KV cache, of those that there is room for"),
            ("▲", "the stage that computes longest; the line below the ring says what that means"),
            ("●a ○b", "microbatch a is computed or on its way, b waits: the picture is one lap old"),
        ),
    ),
)


class HelpScreen(ModalScreen[None]):
    """All of it on one page that scrolls."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,f1,question_mark", "dismiss", "Close", key_display="esc")]
    CSS = """
    HelpScreen { align: center middle; }
    HelpScreen VerticalScroll {
        width: 90%; max-width: 110; height: 90%; border: round $primary; background: $surface; padding: 0 2;
    }
    HelpScreen Static { height: auto; }
    """

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = "help"
            for title, entries in HELP:
                yield Static(Content.assemble("\n", (title, "bold $text-accent")))
                for key, words in entries:
                    yield Entry(key, words)
        yield Footer(compact=True)


class Entry(Static):
    """A key or a figure, and its words hanging beside it."""

    def __init__(self, key: str, words: str) -> None:
        super().__init__(Content.assemble((f"{key:<11}", "bold"), words))
