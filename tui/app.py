"""The dashboard as a whole: messages in, at most ten pictures a second out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.worker import Worker

from ring.wire.clients import Event
from tui.feed import Feed, LiveFeed
from tui.messages import Message, Options
from tui.record import Recorder, RecordingError, ReplayFeed
from tui.screens.base import View
from tui.screens.events import Events
from tui.screens.help import HelpScreen
from tui.screens.options import OptionsScreen
from tui.screens.overview import Overview
from tui.screens.trace import Trace
from tui.screens.waterfall import Waterfall
from tui.state.model import Model
from tui.state.streams import Stream
from tui.state.transcript import transcript
from tui.themes import DARK, FALLBACK, LIGHT
from tui.widgets.prompt import Prompt
from tui.widgets.stream_table import StreamTable

FRAME_S = 0.1
FIGURES_EVERY = 5
WIDTHS = [(0, "-narrow"), (120, "-wide")]
HEIGHTS = [(0, "-short"), (32, "-tall")]
"""Classes that a screen has from this many columns and lines on."""
STILL_S = 1.0
"""When nothing has come, only ages and sliding windows change: once a second is enough."""


class Dashboard(App[None]):
    """Feeds the model, and has the view on screen draw it.

    Args:
        feed: where the messages come from.
        recorder: writes them down, if given; closed at the end.
        starting: the ring is being started together with this.
    """

    TITLE = "ring"
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        "overview": Overview,
        "waterfall": Waterfall,
        "trace": Trace,
        "events": Events,
    }
    DEFAULT_MODE = "overview"
    CSS = """
    .-narrow FooterKey.-command-palette { display: none; }
    """
    HORIZONTAL_BREAKPOINTS = WIDTHS
    VERTICAL_BREAKPOINTS = HEIGHTS
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1,question_mark", "help", "Help", key_display="F1"),
        Binding("slash", "prompt", "Prompt", key_display="/"),
        Binding("1", "view('overview')", "Ring"),
        Binding("2", "view('waterfall')", "Laps"),
        Binding("3", "view('trace')", "Token"),
        Binding("4", "view('events')", "Events"),
        Binding("ctrl+o", "options", "Options", key_display="^O"),
        Binding("d", "dark", "Dark or light", show=False),
        Binding("left_square_bracket", "speed(-1)", "Slower", key_display="["),
        Binding("right_square_bracket", "speed(1)", "Faster", key_display="]"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, feed: Feed, recorder: Recorder | None = None, starting: bool = False) -> None:
        super().__init__()
        self.feed = feed
        self.recorder = recorder
        self.starting = starting
        self.model = Model(feed.started)
        self.options = Options()
        self.selected: int | None = None
        self._asking: dict[int, Worker[None]] = {}
        self._asked = 0
        self._frame = 0
        self._drawn = (-1, float("-inf"))
        feed.take = self.take

    # ---- the flow ----

    def on_mount(self) -> None:
        """Begin to listen and to draw."""
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = DARK.name
        self.run_worker(self.feed.run(), group="feed")
        self.set_interval(FRAME_S, self.draw)
        self.set_interval(STILL_S, self._flush_recording)

    def take(self, message: Message) -> None:
        """Whatever the feed tells; nothing is drawn now."""
        at = self.feed.now()
        self.model.take(message, at)
        if self.recorder is not None:
            try:
                self.recorder.take(message, at)
            except RecordingError as error:
                self._stop_recording(error)

    def report(self, severity: str, line: str) -> None:
        """A line from beside the ring, such as its launcher's; may be called from any thread."""
        event = Event(0, time.time(), "warning" if severity == "warning" else "info", -1, line)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.take, event)

    def draw(self) -> None:
        """Have the view on screen draw what is new; at most ten times a second, whatever comes."""
        self._frame += 1
        figures = self._frame % FIGURES_EVERY == 0
        version, at = self._drawn
        now = time.monotonic()
        self.model.now = max(self.model.now, self.feed.now())
        if self.model.version == version and now - at < STILL_S and not self.model.moving:
            return
        self.model.tick(self.model.now)
        if figures or now - at >= STILL_S:
            self._drawn = (self.model.version, now)
            figures = True
        screen = self.screen_stack[-1] if self.screen_stack else None  # none while it ends
        if isinstance(screen, View):
            screen.draw_what_is_there(figures)

    def _flush_recording(self) -> None:
        if self.recorder is not None:
            try:
                self.recorder.flush()
            except RecordingError as error:
                self._stop_recording(error)

    def _stop_recording(self, error: RecordingError) -> None:
        self.recorder = None
        self.notify(str(error), title="Recording stopped", severity="error", timeout=20)

    async def on_unmount(self) -> None:
        """End the prompts, then the connection by which they are cancelled; write what is left of the recording."""
        for group in ("ask", "feed"):
            workers = [worker for worker in self.workers if worker.group == group]
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*(worker.wait() for worker in workers), return_exceptions=True)
        if self.recorder is not None:
            self.recorder.close()

    @property
    def note(self) -> str:
        """What the headline says of recordings."""
        if isinstance(self.feed, ReplayFeed):
            feed = self.feed
            speed = "ended" if feed.over else f"{feed.speed:g}×" if feed.speed else "held"
            return f"▶ replay {speed} {feed.now():.0f}/{feed.duration:.0f} s"
        return "● rec" if self.recorder is not None else ""

    # ---- prompts ----

    @property
    def selected_stream(self) -> Stream | None:
        """The prompt that keys act on."""
        return self.model.streams.get(self.selected) if self.selected is not None else None

    def ask(self, prompt: str, options: Options) -> None:
        """Send a prompt and select it."""
        if isinstance(self.feed, ReplayFeed):
            self.notify("This is a recording; it answers no prompts.", severity="warning")
            return
        self._asked += 1
        number = self._asked
        self._asking[number] = self.run_worker(self.feed.ask(number, prompt, options), group="ask")
        self._asking = {n: worker for n, worker in self._asking.items() if not worker.is_finished}
        self.select(number)

    def select(self, number: int) -> None:
        """Make a prompt the one that is shown and acted on."""
        self.selected = number
        for table in self.screen.query(StreamTable):
            table.select(number)

    def action_cancel(self) -> None:
        """End the selected prompt, on every stage."""
        stream = self.selected_stream
        if stream is not None and stream.running and (worker := self._asking.get(stream.number)):
            worker.cancel()

    def action_copy(self) -> None:
        """The selected prompt's answer to the clipboard, by OSC 52."""
        if stream := self.selected_stream:
            self.copy_to_clipboard(stream.text)
            self.notify(f"Copied the {len(stream.text):,} characters of answer {stream.number}.")

    def action_again(self) -> None:
        """The selected prompt once more, as it was."""
        if stream := self.selected_stream:
            self.ask(stream.prompt, stream.options)

    def action_edit(self) -> None:
        """The selected prompt into the input."""
        if stream := self.selected_stream:
            self.action_prompt()
            self.call_after_refresh(lambda: self.screen.query_one(Prompt).fill(stream.prompt))

    def action_save(self) -> None:
        """All prompts and answers into a file."""
        path = Path.cwd() / time.strftime("ring-transcript-%Y%m%d-%H%M%S.md")
        name = self.model.status.model if self.model.status else ""
        try:
            path.write_text(transcript(self.model.streams.values(), name), encoding="utf-8")
        except OSError as error:
            self.notify(f"Cannot write {path}: {error.strerror}", severity="error")
        else:
            self.notify(f"Saved {len(self.model.streams)} prompts to {path}")

    # ---- views ----

    def action_view(self, name: str) -> None:
        """Show one of the four views."""
        self.switch_mode(name)

    def action_prompt(self) -> None:
        """To the prompt, from anywhere."""
        self.switch_mode("overview")
        self.call_after_refresh(lambda: self.screen.query_one(Prompt).focus())

    def action_options(self) -> None:
        """Change how the next prompts are sampled."""

        def keep(options: Options | None) -> None:
            if options is not None:
                self.options = options
                self.model.version += 1

        if isinstance(self.screen, View):
            self.push_screen(OptionsScreen(self.options), keep)

    def action_help(self) -> None:
        """Keys and figures."""
        if isinstance(self.screen, View):
            self.push_screen(HelpScreen())

    def action_dark(self) -> None:
        """From dark to light or back."""
        self.theme = LIGHT.name if self.current_theme.dark else DARK.name

    def action_speed(self, steps: int) -> None:
        """Replay faster or slower."""
        if isinstance(self.feed, ReplayFeed):
            self.feed.change_speed(steps)
            self.model.version += 1

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our two shades of grey, for themes that do not have them."""
        return FALLBACK

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The speed keys exist only in a replay, and the way to the prompt only elsewhere."""
        if action == "speed":
            return isinstance(self.feed, ReplayFeed)
        return action != "prompt" or not isinstance(self.focused, Prompt)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """What the command palette offers beside Textual's own."""
        yield from super().get_system_commands(screen)
        for name in self.MODES:
            yield SystemCommand(f"View: {name}", f"Show the {name}", lambda name=name: self.action_view(name))
        yield SystemCommand("Prompt", "Type a prompt", self.action_prompt)
        yield SystemCommand("Options", "How the next prompts are sampled", self.action_options)
        yield SystemCommand("Cancel", "End the selected prompt on every stage", self.action_cancel)
        yield SystemCommand("Copy", "Copy the selected answer", self.action_copy)
        yield SystemCommand("Ask again", "Send the selected prompt once more", self.action_again)
        yield SystemCommand("Save", "Write all prompts and answers into a file", self.action_save)
        yield SystemCommand("Help", "Keys, and what the figures mean", self.action_help)


def run(head: str, record: Path | None, replay: Path | None, speed: float, keys: Path | None, insecure: bool) -> None:
    """The dashboard on this terminal, until the user leaves it.

    Raises:
        RecordingError: the recording cannot be written or played.
        KeyFileError: keys that cannot be used.
    """
    feed = ReplayFeed(replay, speed) if replay else LiveFeed(head, keys, insecure)
    recorder = Recorder(record, head, feed.started) if record else None
    Dashboard(feed, recorder).run()
