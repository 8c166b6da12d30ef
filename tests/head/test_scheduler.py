"""The scheduler's promises, held against random traffic."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring.head.drafts import Drafter
from ring.head.scheduler import Busy, Fresh, Microbatch, Scheduler, TooLong
from ring.head.sequence import Sequence


@dataclass
class Ring:
    """Stands in for the stages: checks every run against what earlier ones cached, in order, and answers in order."""

    scheduler: Scheduler
    chance: random.Random = field(default_factory=random.Random)
    cached: dict[int, tuple[Sequence, int]] = field(default_factory=dict)
    queue: list[Microbatch] = field(default_factory=list)

    def send(self) -> None:
        self.take_releases()
        while (microbatch := self.scheduler.next_microbatch()) is not None:
            self.accept(microbatch)
            self.take_releases()

    def take_releases(self) -> None:
        for slot in self.scheduler.take_released():
            self.cached.pop(slot, None)  # a slot may go unused: cancelled between admission and its first run

    def accept(self, microbatch: Microbatch) -> None:
        scheduler = self.scheduler
        assert len(scheduler.in_flight) <= scheduler.pace.depth + 1
        assert sum(run.count for _, run in microbatch.parts) <= scheduler.token_budget + scheduler.block
        decoding = sum(sequence.decoding for sequence in scheduler.running)
        decodes = [s for s, run in microbatch.parts if run.start >= s.prefill]
        assert len(decodes) == microbatch.decodes <= max(1, -(-decoding // microbatch.groups))
        assert sum(other.decodes > 0 for other in scheduler.in_flight.values()) <= scheduler.pace.depth
        assert len({run.slot for _, run in microbatch.parts}) == len(microbatch.parts)
        for sequence, run in microbatch.parts:
            owner, length = self.cached.get(run.slot, (sequence, 0)) if run.start else (sequence, 0)
            assert owner is sequence and run.start <= length, "a run that leaves a gap or another sequence's slot"
            if run.start >= sequence.prefill:
                assert run.start == sequence.length - 1, "a decoding run is the last token that is known, and guesses"
            else:
                assert run.start == length and run.answers == 1
                end = run.start + run.count
                assert end == sequence.prefill or end % scheduler.block == 0, "a chunk that ends within a block"
            assert run.prompt == len(sequence.prompt)
            assert run.start + run.count <= run.reserve
            self.cached[run.slot] = (sequence, run.start + run.count)
        for flying in self.queue:
            others = {s for s, run in flying.parts if run.sampling is not None}
            assert not others & {s for s, _ in microbatch.parts}, "a sequence runs on before its token is known"
        assert len(microbatch.token_ids()) == sum(run.count for _, run in microbatch.parts)
        self.queue.append(microbatch)

    def answer(self) -> list[Fresh]:
        microbatch = self.queue.pop(0)
        count = sum(run.count for _, run in microbatch.parts)
        costs = [self.chance.uniform(0.1, 2) for _ in range(self.scheduler.stages)]  # the pace may learn anything
        prefill = microbatch.decodes < len(microbatch.parts)
        moving = self.chance.uniform(0, 3)
        self.scheduler.pace.observe(count, microbatch.decoding, microbatch.groups, prefill, sum(costs) + moving, costs, moving)
        tokens: list[int | None] = [said(sequence, at) for sequence, run in microbatch.parts for at in run.answered]
        return self.scheduler.complete(microbatch.number, tokens)


def said(sequence: Sequence, position: int) -> int:
    """What the stand-in answers: for some sequences it soon repeats, so that guesses are right, for others it never does."""
    return position % (3 + 40 * (sequence.number % 3))


def check_accounts(scheduler: Scheduler) -> None:
    slots = [s.slot for s in scheduler.running]
    assert len(set(slots)) == len(slots)
    assert len(slots) + len(scheduler._free_slots) == scheduler.max_running
    assert scheduler.kv_reserved == sum(s.reserve for s in scheduler.running) <= scheduler.kv_tokens


@settings(max_examples=150, deadline=None)
@given(
    stages=st.integers(1, 5),
    budget=st.integers(1, 40),
    slots=st.integers(1, 8),
    requests=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=20),
    seed=st.integers(0, 2**32),
)
def test_every_request_is_answered_once_and_nothing_leaks(
    stages: int, budget: int, slots: int, requests: list[tuple[int, int]], seed: int
) -> None:
    chance = random.Random(seed)
    scheduler = Scheduler(stages, kv_tokens=100, token_budget=budget, max_running=slots, max_waiting=1000)
    scheduler.pace.shared = chance.random() < 0.5
    ring = Ring(scheduler, chance)
    sequences = [
        Sequence(i, [said_at % (3 + 40 * (i % 3)) for said_at in range(length)], count, drafter=Drafter() if i % 2 else None)
        for i, (length, count) in enumerate(requests)
    ]
    arriving = list(sequences)
    cancelled: set[Sequence] = set()
    finished: list[Sequence] = []
    for _ in range(20_000):
        action = chance.random()
        if arriving and action < 0.2:
            scheduler.add(arriving.pop(0))
        elif action < 0.25 and (live := scheduler.running + list(scheduler.waiting)):
            victim = chance.choice(live)
            if chance.random() < 0.3:
                cancelled.add(victim)
                scheduler.remove(victim)
        elif action < 0.27:
            scheduler.rewind()
            ring.queue.clear()
            ring.cached.clear()
        elif ring.queue:
            for sequence, _, _ in ring.answer():
                if len(sequence.generated) == sequence.max_tokens and not sequence.finished:
                    scheduler.remove(sequence)
                    finished.append(sequence)
        ring.send()
        check_accounts(scheduler)
        if not arriving and not scheduler.running and not scheduler.waiting and not ring.queue:
            break
    else:
        pytest.fail("some sequence starved")
    assert len(finished) == len(set(finished))
    assert set(finished) | cancelled == set(sequences)
    for sequence in finished:  # exactly one token for each position, and the right one, guessed or not
        first = len(sequence.prompt)
        assert sequence.generated == [said(sequence, at) for at in range(first, first + sequence.max_tokens)]


def test_prefill_chunks_follow_each_other_without_waiting() -> None:
    scheduler = Scheduler(stages=3, kv_tokens=1000, token_budget=10)
    scheduler.add(Sequence(1, list(range(28)), 5))
    batches = []
    while (microbatch := scheduler.next_microbatch()) is not None:
        batches.append(microbatch)
    runs = [(run.start, run.count, run.sampling is not None) for batch in batches for _, run in batch.parts]
    assert runs == [(0, 8, False), (8, 8, False), (16, 8, False), (24, 4, True)]


def test_chunks_end_between_blocks_and_short_prompts_share_a_microbatch() -> None:
    scheduler = Scheduler(stages=1, kv_tokens=1000, token_budget=100)
    for number, length in ((1, 45), (2, 70), (3, 24)):
        scheduler.add(Sequence(number, list(range(length)), 5))
    batches = []
    for _ in range(2):
        microbatch = scheduler.next_microbatch()
        assert microbatch is not None
        batches.append([(sequence.number, run.start, run.count) for sequence, run in microbatch.parts])
        scheduler.complete(microbatch.number, [9] * sum(len(run.answered) for _, run in microbatch.parts))
    assert batches == [[(1, 0, 45), (2, 0, 48)], [(1, 45, 1), (2, 48, 16)]]


def test_decoding_goes_on_beside_a_long_prompt() -> None:
    scheduler = Scheduler(stages=2, kv_tokens=10_000, token_budget=16)
    stream = Sequence(1, [1, 2, 3], 50)
    scheduler.add(stream)
    first = scheduler.next_microbatch()
    assert first is not None
    scheduler.complete(first.number, [9])
    scheduler.add(Sequence(2, list(range(1000)), 5))
    microbatch = scheduler.next_microbatch()
    assert microbatch is not None
    assert [(s.number, run.count) for s, run in microbatch.parts] == [(1, 1), (2, 8)]


def test_decodes_are_spread_evenly() -> None:
    scheduler = Scheduler(stages=4, kv_tokens=10_000, token_budget=64)
    for number in range(16):
        scheduler.add(Sequence(number, [1], 10))
    first = scheduler.next_microbatch()
    assert first is not None and len(first.parts) == 16
    scheduler.complete(first.number, [1] * 16)
    sizes = []
    while (microbatch := scheduler.next_microbatch()) is not None:
        sizes.append(len(microbatch.parts))
    assert sizes == [4, 4, 4, 4]


def test_a_request_that_never_fits_is_refused() -> None:
    scheduler = Scheduler(stages=1, kv_tokens=100)
    with pytest.raises(TooLong, match="120"):
        scheduler.add(Sequence(1, [0] * 100, 21))


def test_the_waiting_queue_is_bounded() -> None:
    scheduler = Scheduler(stages=1, kv_tokens=100, max_waiting=2)
    scheduler.add(Sequence(1, [0], 1))
    scheduler.add(Sequence(2, [0], 1))
    with pytest.raises(Busy):
        scheduler.add(Sequence(3, [0], 1))


def test_admission_waits_for_kv_in_order() -> None:
    scheduler = Scheduler(stages=1, kv_tokens=100)
    scheduler.add(Sequence(1, [0] * 50, 21))
    scheduler.add(Sequence(2, [0] * 50, 1))
    scheduler.add(Sequence(3, [0], 1))
    microbatch = scheduler.next_microbatch()
    assert microbatch is not None
    assert [s.number for s, _ in microbatch.parts] == [1], "the second does not fit yet, and the third must not overtake it"


def test_the_wrong_number_of_tokens_is_an_error() -> None:
    scheduler = Scheduler(stages=1, kv_tokens=100)
    scheduler.add(Sequence(1, [0], 5))
    microbatch = scheduler.next_microbatch()
    assert microbatch is not None
    with pytest.raises(ValueError, match="2 tokens for 1"):
        scheduler.complete(microbatch.number, [1, 2])
