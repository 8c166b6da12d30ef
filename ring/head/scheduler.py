"""Which tokens go into the next microbatch. Pure: no clock, no sockets, no tensors.

Continuous batching: sequences join and leave between microbatches. Several microbatches are in flight so that every
stage computes at once; each takes its share of the decoding sequences and fills up with prefill chunks to a budget of
tokens, so that running streams keep flowing under a long prompt.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from ring.head.pace import Pace
from ring.head.sequence import Sequence
from ring.wire.messages import BLOCK, Run

DRAFTED = 15
"""Most guesses in a microbatch: with so many rows it hardly takes longer than with one."""


class Busy(Exception):
    """The waiting queue is full."""


class TooLong(Exception):
    """The request needs more KV cache than the ring has."""


@dataclass(frozen=True, slots=True)
class Microbatch:
    """What goes through the ring together: one run for each of its sequences, the first `decodes` of them decoding.

    It was formed as one of `groups` microbatches that shared all `decoding` sequences.
    """

    number: int
    parts: list[tuple[Sequence, Run]]
    decodes: int = 0
    decoding: int = 0
    groups: int = 1

    def token_ids(self) -> list[int]:
        """The input of stage 0: all runs' token ids, end to end."""
        return [
            token
            for sequence, run in self.parts
            for token in (*sequence.slice(run.start, run.count), *(sequence.drafts if run.answers > 1 else ()))
        ]


class Fresh(NamedTuple):
    """A new token of a sequence, None if it has failed, and its row among all tokens of the microbatch."""

    sequence: Sequence
    token: int | None
    row: int


class Scheduler:
    """Keeps the stages busy with as few microbatches in flight as that takes; `pace` knows how many.

    Args:
        stages: number of stages of the ring.
        kv_tokens: KV capacity of the smallest stage.
        token_budget: most tokens of prompts in a microbatch, in whole blocks; and most decode steps.
        max_running: slots.
        max_waiting: bound of the waiting queue.
    """

    def __init__(
        self, stages: int, kv_tokens: int, token_budget: int = 128, max_running: int = 64, max_waiting: int = 256
    ) -> None:
        self.stages = stages
        self.kv_tokens = kv_tokens
        self.token_budget = token_budget
        self.block = min(BLOCK, token_budget)
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.in_flight: dict[int, Microbatch] = {}
        self.pace = Pace(stages)
        self.kv_reserved = 0
        self._ready: deque[Sequence] = deque()  # decoding, with their next token known, longest waiting first
        self._free_slots = list(range(max_running - 1, -1, -1))
        self._released: list[int] = []
        self._next_number = 0
        self._unanswered = 0  # microbatches without a decoding sequence sent since the last one came back

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            TooLong: it could never be admitted.
            Busy: too many are waiting already.
        """
        if sequence.reserve > self.kv_tokens:
            raise TooLong(f"the request needs {sequence.reserve} tokens of KV cache and the ring has {self.kv_tokens}")
        if len(self.waiting) >= self.max_waiting:
            raise Busy(f"{len(self.waiting)} requests are waiting already")
        self.waiting.append(sequence)

    def next_microbatch(self) -> Microbatch | None:
        """The next microbatch to send, or None if there is nothing to send or enough is in flight."""
        decoding = sum(sequence.decoding for sequence in self.running)
        # One more than the stages need hides the hops, but makes running streams wait for it.
        if len(self.in_flight) >= self.pace.depth + (not decoding):
            return None
        if decoding and self._unanswered and not self._ready:
            return None  # a pile of them at the first stage would be in the running streams' way
        groups = self.pace.groups(decoding)
        parts = self._decode_parts(decoding, groups)
        decodes = len(parts)
        self._admit()
        prefilling = [sequence for sequence in self.running if not sequence.decoding]
        if prefilling:
            pending = sum(sequence.prefill - sequence.dispatched for sequence in prefilling)
            used = sum(run.count for _, run in parts)
            budget = max(self.block, self.pace.chunk(pending, decoding, self.token_budget) - used)
            for sequence in prefilling:
                count = min(sequence.prefill - sequence.dispatched, budget)
                if sequence.dispatched + count < sequence.prefill:
                    count -= count % self.block
                if count == 0:
                    break
                parts.append((sequence, self._dispatch(sequence, count)))
                budget -= count
        if not parts:
            return None
        microbatch = Microbatch(self._next_number, parts, decodes, decoding, groups)
        self._next_number += 1
        self._unanswered += not decodes
        self.in_flight[microbatch.number] = microbatch
        return microbatch

    def complete(self, number: int, tokens: list[int | None]) -> list[Fresh]:
        """A microbatch came round with these sampled tokens; returns the live sequences' new ones. A sequence whose token
        is None has failed, and is for the caller to remove.

        Raises:
            KeyError: it is not in flight.
            ValueError: not as many tokens as were asked for.
        """
        microbatch = self.in_flight[number]
        sampled = [(sequence, run.answers) for sequence, run in microbatch.parts if run.sampling is not None]
        wanted = sum(answers for _, answers in sampled)
        if wanted != len(tokens):
            raise ValueError(f"{len(tokens)} tokens for {wanted} sampled positions")
        del self.in_flight[number]
        self._unanswered = 0
        fresh: list[Fresh] = []
        row = 0
        for sequence, answers in sampled:
            if not sequence.finished:
                new = sequence.extend(tokens[row : row + answers])
                fresh += [Fresh(sequence, token, row + index) for index, token in enumerate(new)]
                if new[-1] is not None:
                    self._ready.append(sequence)
            row += answers
        return fresh

    def fail(self, number: int) -> list[Sequence]:
        """A microbatch was lost to a fault: its live sequences, which the caller now removes."""
        microbatch = self.in_flight.pop(number)
        self._unanswered = 0
        return [sequence for sequence, _ in microbatch.parts if not sequence.finished]

    def remove(self, sequence: Sequence) -> None:
        """The sequence is done or cancelled: its slot and its KV reserve are free at once.

        A run of it may still be in flight. Its Release follows that run on the same path, so the slot can be reused.
        """
        if sequence.finished:
            return
        sequence.finished = True
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        if sequence in self._ready:
            self._ready.remove(sequence)
        self.kv_reserved -= sequence.reserve
        self._free_slots.append(sequence.slot)
        self._released.append(sequence.slot)

    def take_released(self) -> list[int]:
        """Slots freed since the last call, for a Release message."""
        released, self._released = self._released, []
        return released

    def rewind(self) -> None:
        """The ring was broken and has lost its KV caches: forget what is in flight, replay every running sequence."""
        self.in_flight.clear()
        self._unanswered = 0
        self._ready.clear()
        self._released.clear()
        for sequence in self.running:
            sequence.replay()

    def _decode_parts(self, decoding: int, groups: int) -> list[tuple[Sequence, Run]]:
        """This microbatch's even share of all decoding sequences, longest waiting first.

        None while `groups` others are on their way: those that come back meanwhile are to go together.
        """
        if not self._ready or sum(microbatch.decodes > 0 for microbatch in self.in_flight.values()) >= groups:
            return []
        share = min(-(-decoding // groups), len(self._ready), self.token_budget)
        # Guesses fill what would stay empty: stages without a microbatch, rows of one that has few.
        room = min(self.token_budget - share, DRAFTED) // share if decoding < max(2, self.pace.depth) else 0
        return [self._decode(sequence, room) for sequence in (self._ready.popleft() for _ in range(share))]

    def _decode(self, sequence: Sequence, room: int) -> tuple[Sequence, Run]:
        """The last token of a sequence, and up to `room` guesses at those after it."""
        run = self._dispatch(sequence, 1)
        room = min(room, sequence.reserve - run.start - 1)
        if sequence.drafter is not None and room > 0 and (drafts := sequence.drafter.propose(room)):
            sequence.drafts = drafts
            rows = 1 + len(drafts)
            run = Run(run.slot, run.start, rows, run.reserve, run.sampling, rows, run.prompt)
        return sequence, run

    def _dispatch(self, sequence: Sequence, count: int) -> Run:
        assert sequence.slot is not None
        last = sequence.dispatched + count == sequence.length
        sampling = sequence.sampling if last else None
        run = Run(sequence.slot, sequence.dispatched, count, sequence.reserve, sampling, 1, len(sequence.prompt))
        sequence.dispatched += count
        return run

    def _admit(self) -> None:
        """Move waiting sequences to slots, in order, while slots and KV cache last."""
        while self.waiting and self._free_slots:
            if self.kv_reserved + self.waiting[0].reserve > self.kv_tokens:
                return
            sequence = self.waiting.popleft()
            sequence.slot = self._free_slots.pop()
            self.kv_reserved += sequence.reserve
            self.running.append(sequence)
