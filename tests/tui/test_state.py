"""What the dashboard knows, from messages alone."""

from __future__ import annotations

import gc
import random
from collections import deque
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring.wire.clients import Event, Lap, LapHop, LapRun
from tests.tui.hours import live
from tests.tui.scenes import COMPUTE_MS, PROMPTS, broken, found, lost, pipeline, running, status, timings
from tui.messages import Asked, Ended, Grew, Link, Message, Options
from tui.state.bottleneck import bottleneck
from tui.state.condition import condition, describe, lost_stage
from tui.state.histogram import SlidingHistogram
from tui.state.laps import LapLog, end_ns, intervals, letter, prefills, tokens
from tui.state.model import ENDED_STREAMS, EVENTS, Model
from tui.state.stages import RingStats
from tui.state.transcript import transcript


def told(story: list[tuple[float, Message]]) -> Model:
    model = Model()
    for at, message in story:
        model.take(message, at)
    return model


def lap(number: int, started: int, hops: list[tuple[int, int, int, int]], epoch: int = 7) -> Lap:
    parts = [LapHop(k, *hop, 100) for k, hop in enumerate(hops)]
    return Lap(1, number, epoch, started, sum(map(sum, hops)), parts, [LapRun(1, number, 1, False)])


@given(st.lists(st.floats(min_value=1.5, max_value=1e10), min_size=1, max_size=300), st.sampled_from([0.5, 0.95, 1.0]))
def test_a_percentile_is_within_one_percent_of_the_exact_one(values: list[float], share: float) -> None:
    histogram = SlidingHistogram()
    for value in values:
        histogram.add(value, 1.0)
    rank = max(0, -int(-share * len(values) // 1) - 1)
    exact = sorted(values)[rank]
    assert histogram.percentile(share) == pytest.approx(exact, rel=0.0101)


def test_the_histogram_forgets_after_a_minute() -> None:
    histogram = SlidingHistogram()
    histogram.add(1000.0, 0.5)
    histogram.add(9000.0, 30.0)
    assert histogram.percentile(0.01) == pytest.approx(1000, rel=0.01)
    histogram.expire(61.0)
    assert histogram.percentile(0.01) == pytest.approx(9000, rel=0.01)
    histogram.expire(91.0)
    assert histogram.percentile(0.5) is None


def test_intervals_join_without_gaps_from_start_to_end() -> None:
    for one in pipeline(50):
        parts = intervals(one)
        assert parts[0].arrived == one.started_ns
        assert parts[-1].left == end_ns(one)
        for before, after in pairwise(parts):
            assert before.left == after.arrived
            assert before.arrived <= before.started <= before.finished <= before.sent <= before.left


def test_shares_add_up_and_are_right() -> None:
    # Two stages, 10 and 20 ns of compute, one microbatch at a time, 1 ns of send and 4 of wire: a lap takes 40 ns.
    stats = RingStats()
    for number in range(10):
        stats.add(lap(number, number * 40, [(0, 10, 1, 4), (0, 20, 1, 4)]), 1.0)
    first, second = stats.stages[0].shares(), stats.stages[1].shares()
    assert first is not None and second is not None
    for shares in (first, second):
        assert shares.busy + shares.waiting + shares.blocked == pytest.approx(1.0)
        assert shares.blocked == 0.0
    assert first.busy == pytest.approx(100 / (100 + 9 * 30))
    assert second.busy == pytest.approx(200 / (200 + 9 * 20))


def test_time_without_work_is_nobodys_bubble() -> None:
    stats = RingStats()
    stats.add(lap(0, 0, [(0, 10, 0, 0), (0, 10, 0, 0)]), 1.0)
    stats.add(lap(1, 1_000_000, [(0, 10, 0, 0), (0, 10, 0, 0)]), 2.0)
    assert stats.stages[0].sum("waiting") == 10  # until the first lap was back, not the pause after it
    assert stats.stages[1].sum("waiting") == 10  # until stage 0 had done the second


def test_input_that_waits_for_a_stage_that_is_still_sending_is_blocked() -> None:
    stats = RingStats()
    stats.add(lap(0, 0, [(0, 10, 0, 0)]), 1.0)
    stats.add(lap(1, 4, [(13, 10, 0, 0)]), 1.0)  # there at 4, the stage free at 10, begun at 17
    assert stats.stages[0].sum("blocked") == 7
    assert stats.stages[0].sum("waiting") == 0


def test_what_was_not_seen_counts_for_nothing() -> None:
    stats = RingStats()
    stats.add(lap(0, 0, [(0, 10, 0, 0)]), 1.0)
    stats.add(lap(5, 100, [(0, 10, 0, 0)]), 1.0)
    assert stats.stages[0].sum("waiting") == 0


def test_every_stage_is_given_the_same_time() -> None:
    stats = RingStats()
    for one in pipeline(500):
        stats.add(one, 1.0)
    whole = [s.sum("compute") + s.sum("waiting") + s.sum("blocked") for s in stats.stages.values()]
    assert max(whole) - min(whole) < max(whole) * 0.01
    assert stats.stages[2].shares() is not None and stats.stages[2].shares().busy > 0.97  # type: ignore[union-attr]


def test_the_mean_laps_parts_are_the_mean_lap() -> None:
    stats, laps = RingStats(), pipeline(300)
    for one in laps:
        stats.add(one, 1.0)
    mean = stats.mean_lap()
    assert mean is not None and mean.laps == 300
    assert mean.total == pytest.approx(sum(one.duration_ns for one in laps) / 300)
    assert stats.stages[0].rate(2.0, "laps") == 30.0
    assert stats.stages[0].rate(2.0, "tokens") == sum(map(tokens, laps)) / 10
    assert stats.stages[1].rate(2.0, "bytes") == sum(one.hops[1].bytes for one in laps) / 10


def test_sparkline_has_a_bucket_for_each_share_of_the_minute() -> None:
    stats = RingStats()
    for second in range(60):
        stats.add(lap(second, second * 10**9, [(0, 500_000_000, 0, 0)]), float(second))
    assert stats.stages[0].sparkline(60.0, 20) == pytest.approx([0.5] * 20)
    assert stats.stages[0].sparkline(90.0, 20) == pytest.approx([0.5] * 10 + [0.0] * 10)


@pytest.mark.parametrize(
    ("computes", "wire", "words"),
    [
        ((10, 10, 30), 0, "stage 2 holds the ring back"),
        ((10, 10, 10), 0, "well balanced"),
        ((10, 10, 12), 90, "the hop 0 → 1 takes"),
    ],
)
def test_the_bottleneck_is_named(computes: tuple[int, ...], wire: int, words: str) -> None:
    stats, free, returned = RingStats(), [0] * 3, [0] * 200
    for number in range(200):  # four in flight
        at = began = returned[number - 4] if number >= 4 else 0
        hops = []
        for k, compute in enumerate(computes):
            started = max(at, free[k])
            hops.append((started - at, compute * 1000, 0, (wire if k == 0 else 0) * 1000))
            free[k] = started + compute * 1000
            at = free[k] + hops[-1][3]
        returned[number] = at
        stats.add(lap(number, began, hops), 1.0)
    result = bottleneck(stats)
    assert result is not None and words in result.words


def test_an_empty_pipeline_is_called_so() -> None:
    stats = RingStats()
    assert bottleneck(stats) is None
    for number in range(20):
        stats.add(lap(number, number * 40_000, [(0, 10_000, 0, 0), (0, 20_000, 0, 0), (0, 10_000, 0, 0)]), 1.0)
    result = bottleneck(stats)
    assert result is not None and result.stage == 1 and "more prompts" in result.words


def test_the_log_is_bounded_and_finds_laps() -> None:
    log = LapLog(kept=100)
    laps = pipeline(500)
    for one in laps:
        log.add(one)
    assert list(log.laps) == laps[-100:]
    assert log.total == 500
    run = laps[-1].runs[0]
    assert log.reaching(run.sequence, run.start + 1) is laps[-1]
    assert log.reaching(1, 128) is None  # a prefill chunk that has left the log
    assert len(log._by_run) == 100
    middle = laps[-50]
    found_laps = log.between(middle.started_ns, middle.started_ns + 1, 1000)
    assert middle in found_laps and found_laps == sorted(found_laps, key=lambda one: one.microbatch)
    assert len(log.between(0, 10**18, 7)) == 7


def test_the_prompt_ends_where_decoding_begins_and_a_replay_does_not_move_it() -> None:
    log = LapLog()
    for number, run in enumerate(
        [
            LapRun(9, 0, 128, True),
            LapRun(9, 128, 40, True),
            LapRun(9, 168, 1, False),
            LapRun(9, 0, 128, True),
            LapRun(9, 128, 60, True),
        ]
    ):
        log.add(msgspec.structs.replace(pipeline(1)[0], microbatch=number, runs=[run]))
    assert log.prompt_tokens(9) == 168
    assert log.prompt_tokens(8) is None


def test_a_lap_is_named_and_described() -> None:
    first, *_, last = pipeline(30)
    assert (letter(first), prefills(first), tokens(first)) == ("a", True, 128)
    assert (letter(last), prefills(last), tokens(last)) == ("d", False, 1)


def test_a_story_told() -> None:
    model = told(running())
    assert model.condition == "running" and model.ready
    assert [stream.state for stream in model.streams.values()] == ["max len", "decode", "decode", "decode", "failed"]
    assert model.live_streams() == 3
    third = model.streams[3]
    assert third.tokens > 100 and third.text and third.prompt == PROMPTS[2]
    token = model.lap_of_token(third, 5)
    assert token is not None and token.runs[0].sequence == 3
    assert [event.message[:14] for event in model.events] == ["found the head", "the ring has f", "a request was "]


def test_the_token_and_its_lap_belong_together() -> None:
    model = told(running())
    stream = model.streams[2]
    for mark in list(stream.marks)[::20]:
        lap_of_it = model.lap_of_token(stream, mark.index)
        assert lap_of_it is not None
        assert mark.at == pytest.approx(end_ns(lap_of_it) / 1e9)


def test_conditions() -> None:
    connected = Link("connected")
    assert condition(Link("connecting"), None, False) == "connecting"
    assert condition(connected, None, False) == "connecting"
    assert condition(Link("lost"), status(), False) == "lost"
    assert condition(Link("refused"), status(), False) == "refused"
    assert condition(connected, status("forming", stages=0), False) == "forming"
    assert condition(connected, status("forming"), False) == "broken"
    assert condition(connected, status("mismatch", stages=0), False) == "mismatch"
    assert condition(connected, status(), False) == "idle"
    assert condition(connected, status(running=1), False) == "running"
    assert condition(connected, status(waiting=1), False) == "running"
    assert condition(connected, status(), True) == "running"


def test_a_lost_stage_is_named_with_its_host_and_layers() -> None:
    model = told(broken())
    assert model.condition == "broken"
    assert lost_stage(model.status) == 1
    words = describe("broken", model.link, model.status, "HEAD", 3.4, 2, False)
    assert words.title == "Lost 3 s ago: stage 1 (beta, layers 4-7)"
    assert "2 streams of yours wait for it" in words.reason
    assert lost_stage(status("forming")) is None
    assert lost_stage(status()) is None


def test_a_head_that_returns_starts_its_numbers_anew() -> None:
    model = told(lost())
    assert model.condition == "lost"
    assert all(stream.sequence is None for stream in model.streams.values())
    assert model.lap_of_token(model.streams[2], 3) is None
    model.take(Link("connected"), 99.0)
    assert model.events[-1].message == "the head is back"
    messages = [event.message for event in model.events]
    assert "the head is gone; reconnecting" in messages
    assert sum("failed" in message for message in messages) == 3


def test_a_new_epoch_starts_figures_afresh_and_another_clock_the_log() -> None:
    model = told(running())
    before = len(model.log.laps)
    assert before > 1000
    later = end_ns(model.log.laps[-1]) + 10**9
    model.take(lap(0, later, [(0, 10, 0, 0)], epoch=8), 20.0)
    assert len(model.log.laps) == before + 1 and list(model.stats.stages) == [0]
    model.take(lap(0, 5, [(0, 10, 0, 0)], epoch=9), 21.0)
    assert len(model.log.laps) == 1


def test_streams_and_events_are_bounded() -> None:
    model = Model()
    for number in range(1, 500):
        model.take(Asked(number, "x", Options()), 1.0)
        if number != 7:
            model.take(Ended(number, "stop"), 1.0)
    assert len(model.streams) <= ENDED_STREAMS + 2
    assert 7 in model.streams
    for number in range(EVENTS + 10):
        model.take(Event(1, 0.0, "info", -1, str(number)), 1.0)
    assert len(model.events) == EVENTS and model.happened == EVENTS + 10


def test_hours_leave_no_more_behind_than_minutes() -> None:
    model = Model()
    model.log.kept = 1000
    model.events = deque(maxlen=20)
    held = []
    for part in range(3):  # four hours each, in which 200 prompts come and go: as many as are kept
        live(model, part * 40_000, 40_000, rate=2.8)
        gc.collect()
        held.append(len(gc.get_objects()))
    assert len(model.log.laps) == 1000 and model.happened == 600
    assert abs(held[2] - held[1]) < 1000, held


def test_a_streams_own_figures_until_the_head_tells_its() -> None:
    model = Model()
    model.take(Asked(1, "x", Options()), 10.0)
    for step in range(5):
        model.take(Grew(1, 4, 1, "a"), 11.0 + step / 10)
    stream = model.streams[1]
    assert (stream.ttft, stream.state) == (1.0, "decode")
    assert stream.itl == pytest.approx(0.1) and stream.rate == pytest.approx(10.0)
    end = timings(5)
    model.take(Ended(1, "length", "", "", 3, 9, end), 12.0)
    assert (stream.ttft, stream.itl, stream.state) == (end.ttft_s, end.itl_s, "max len")


def test_unknown_streams_are_ignored() -> None:
    model = told(found())
    model.take(Grew(42, 1, 1, "x"), 1.0)
    model.take(Ended(42, "stop"), 1.0)
    assert not model.streams


def test_the_transcript_has_everything_and_survives_backticks() -> None:
    model = told(running())
    model.take(Asked(6, "```python\nx = 1", Options()), 30.0)
    text = transcript(model.streams.values(), "gpt2")
    for prompt in PROMPTS:
        assert prompt in text
    assert model.streams[3].text in text
    assert "seed 7" not in text and "top-p 0.95" in text
    assert "256 requests are waiting already" in text
    assert "````\n```python" in text


def test_random_laps_keep_all_sums_consistent() -> None:
    dice = random.Random(3)
    stats = RingStats()
    whole = 0
    for number in range(200):
        hops = [(dice.randrange(1000), dice.randrange(1000), dice.randrange(50), dice.randrange(500)) for _ in COMPUTE_MS]
        one = lap(number, number * 10_000, hops)
        stats.add(one, number / 10)
        whole += one.duration_ns
    mean = stats.mean_lap()
    assert mean is not None and mean.total * mean.laps == pytest.approx(whole)


def test_a_lap_with_guesses_brought_all_that_were_right() -> None:
    log = LapLog()
    first, second = (
        Lap(1, number, 7, number * 10**9, 10**8, [], [LapRun(5, start, count, prefill=False)])
        for number, start, count in ((1, 10, 4), (2, 12, 1))
    )
    log.add(first)
    log.add(second)  # so only the guesses for 11 and 12 were right, and 13 came with the second
    assert [log.reaching(5, position) for position in (11, 12, 13, 14)] == [first, first, second, first]
