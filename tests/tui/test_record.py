"""What is recorded is what is replayed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ring.wire.clients import Event
from tests.tui.drive import asynchronous, settle, text_of, until
from tests.tui.scenes import STARTED, StillFeed, running
from tui.app import Dashboard
from tui.messages import Message
from tui.record import SPEEDS, Recorder, RecordingError, ReplayFeed, read_messages


def record(path: Path, story: list[tuple[float, Message]]) -> Path:
    recorder = Recorder(path, "tcp://10.0.0.1:5555", STARTED)
    for at, message in story:
        recorder.take(message, at)
    recorder.close()
    return path


def test_every_message_comes_back_as_it_was(tmp_path: Path) -> None:
    story = running()
    path = record(tmp_path / "a.jsonl", story)
    back = list(read_messages(path))
    assert [message for _, message in back] == [message for _, message in story]
    assert [at for at, _ in back] == pytest.approx([at for at, _ in story], abs=1e-6)
    feed = ReplayFeed(path)
    assert (feed.name, feed.started) == ("tcp://10.0.0.1:5555", STARTED)
    assert feed.duration == pytest.approx(story[-1][0], abs=1e-6)


@asynchronous
async def test_a_replay_shows_what_the_live_dashboard_showed(tmp_path: Path) -> None:
    shown = []
    for feed in (StillFeed(running()), ReplayFeed(record(tmp_path / "a.jsonl", running()), speed=1000)):
        app = Dashboard(feed)
        async with app.run_test(size=(140, 40), notifications=True) as pilot:
            await until(pilot, lambda app=app: len(app.model.events) == 3 and app.model.status.running == 3)  # type: ignore[misc]
            await settle(pilot)
            lines = text_of(app).splitlines()
            shown.append((lines[1:-4], [stream.text for stream in app.model.streams.values()]))
    assert shown[0] == shown[1]


@asynchronous
async def test_replay_keys_change_the_speed_and_prompts_are_declined(tmp_path: Path) -> None:
    feed = ReplayFeed(record(tmp_path / "a.jsonl", running()), speed=1)
    app = Dashboard(feed)
    async with app.run_test(size=(140, 40), notifications=True) as pilot:
        await pilot.press("escape")
        for _ in SPEEDS:
            await pilot.press("left_square_bracket")
        assert feed.speed == 0.0
        await until(pilot, lambda: "replay held" in text_of(app))
        held = feed.now()
        await pilot.press("slash", "h", "i", "enter")
        await until(pilot, lambda: "This is a recording" in text_of(app))
        assert feed.now() == held
        await pilot.press("escape")
        for _ in SPEEDS:
            await pilot.press("right_square_bracket")
        assert feed.speed == SPEEDS[-1]
        await until(pilot, lambda: "replay ended" in text_of(app))


def test_what_is_no_recording_is_one_sentence(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    for content in (b"", b"hello\n", b'{"type":"recording"}\n', b"\xff\x00" * 100):
        bad.write_bytes(content)
        with pytest.raises(RecordingError, match="is not a recording"):
            ReplayFeed(bad)
    bad.write_bytes(b'{"type":"recording","version":9,"protocol":1,"head":"x","started":0}\n')
    with pytest.raises(RecordingError, match="version 9"):
        ReplayFeed(bad)
    with pytest.raises(RecordingError, match="cannot read"):
        ReplayFeed(tmp_path / "missing")
    with pytest.raises(RecordingError, match="cannot write"):
        Recorder(tmp_path / "no" / "folder", "x", 0.0)


@pytest.mark.parametrize("damage", [b'{"t":1.0,"type":"lap","mic', b"[1]\n", b'{"t":"x"}\n', b'{"t":1.0,"type":"nobody"}\n'])
def test_a_recording_that_breaks_off_plays_until_there(tmp_path: Path, damage: bytes) -> None:
    path = record(tmp_path / "a.jsonl", running()[:5])
    with path.open("ab") as file:
        file.write(damage)
    messages = [message for _, message in read_messages(path)]
    assert len(messages) == 6
    last = messages[-1]
    assert isinstance(last, Event) and "line 7 cannot be read" in last.message
    assert ReplayFeed(path).duration == 3.0


@asynchronous
async def test_a_full_disk_stops_the_recording_and_nothing_else(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "a.jsonl", "x", 0.0)
    recorder._file.close()
    recorder._file = Path("/dev/full").open("wb", buffering=1 << 10)  # noqa: ASYNC230, SIM115
    app = Dashboard(StillFeed(running()), recorder)
    async with app.run_test(size=(140, 40), notifications=True) as pilot:
        await until(pilot, lambda: "Recording stopped" in text_of(app))
        assert app.recorder is None and app.model.ready
