"""What a stage takes: seconds for a microbatch, bytes of memory, and seconds for a message to the next machine.

A step reads every weight of the stage once, as fast as the machine does with so many rows; each sequence reads its own
keys and values; each layer costs something by itself. Embedding takes memory but no time, as a token reads a row of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import msgspec

from ring.plan.machines import Machine
from weights_tools.facts import ModelFacts

PROCESS = 400 << 20
"""Bytes that a node takes beside weights and KV cache: 250 MB are Python with torch and transformers, the rest what a
microbatch leaves behind on its way."""
PACKING = 1.05
"""How much of memory a byte of a shard takes once it is packed."""
CHUNK = 128
"""Tokens of a prompt's piece, as `ring node --token-budget` has it."""
HEADER = 120
"""Bytes of a message beside its tensor; each stage that it has passed adds some 40."""


class Load(msgspec.Struct, frozen=True):
    """What is asked of the ring: so many `streams` at once, each a prompt of `prompt` tokens and then `new_tokens`, with
    KV cache for `context` tokens each."""

    streams: int = 8
    prompt: int = 128
    new_tokens: int = 128
    context: int = 2048

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV cache that every stage must hold."""
        return self.streams * self.context

    @property
    def attended(self) -> float:
        """Tokens that a decode step attends to, on average."""
        return self.prompt + self.new_tokens / 2


@dataclass(frozen=True, slots=True)
class Work:
    """A microbatch as a stage sees it: `decodes` sequences with one token each that attend to `attended` others, and
    `prefill` tokens of `prompts` sequences, which attend to `before` on average. `sampled` rows go through the LM head."""

    decodes: float
    attended: float = 0.0
    prefill: float = 0.0
    prompts: float = 0.0
    before: float = 0.0
    sampled: float = 0.0


@dataclass(frozen=True)
class StageCost:
    """Layers `start` to `end - 1` of a model on a machine."""

    facts: ModelFacts
    machine: Machine
    start: int
    end: int

    @cached_property
    def dense_bytes(self) -> int:
        """Weights that every token uses."""
        return sum(self.facts.layer_bytes[self.start : self.end]) - self.expert_bytes

    @cached_property
    def expert_bytes(self) -> int:
        """Weights of routed experts."""
        return sum(self.facts.expert_bytes[self.start : self.end])

    @cached_property
    def head_bytes(self) -> int:
        """Weights of the LM head, on the last stage."""
        return self.facts.head_bytes if self.end == self.facts.layers else 0

    @cached_property
    def kv_token_bytes(self) -> int:
        """KV cache of one token."""
        return sum(self.facts.kv_bytes[self.start : self.end])

    @property
    def weight_bytes(self) -> int:
        """The size of its shard."""
        size = self.dense_bytes + self.expert_bytes + self.head_bytes
        if self.start == 0:
            size += self.facts.embedding_bytes
        return size - (self.facts.tied_bytes if self.start == 0 and self.end == self.facts.layers else 0)

    def memory(self, load: Load) -> int:
        """Bytes that its node needs. The KV cache keeps every token, also where a layer attends to a window only."""
        return int(self.weight_bytes * PACKING) + PROCESS + self.kv_token_bytes * load.kv_tokens

    def seconds(self, work: Work) -> float:
        """How long it computes."""
        facts, machine = self.facts, self.machine
        rows = work.decodes + work.prefill
        seconds = self.dense_bytes * machine.seconds_per_byte(facts.dtype, rows)
        if self.expert_bytes:
            share = facts.experts_used / facts.experts
            hit = 1 - (1 - share) ** rows  # of all experts, those that some row uses
            seconds += self.expert_bytes * hit * machine.seconds_per_byte(facts.dtype, rows * share / hit)
        if self.head_bytes and work.sampled:
            seconds += self.head_bytes * machine.seconds_per_byte(facts.dtype, work.sampled)
        seconds += (self.end - self.start) * (machine.layer_overhead + (work.decodes + work.prompts) * machine.run_overhead)
        read = work.decodes * self._attending(work.attended)
        multiplied = 4 * work.prefill * self._attending(work.before) / self._kv_numbers * facts.attention_width
        return seconds + read / machine.bandwidth + multiplied / machine.flops(facts.dtype)

    @cached_property
    def _windows(self) -> dict[int | None, int]:
        """KV bytes of a token in all layers with the same window."""
        sums: dict[int | None, int] = {}
        for window, size in zip(
            self.facts.windows[self.start : self.end], self.facts.kv_bytes[self.start : self.end], strict=True
        ):
            sums[window] = sums.get(window, 0) + size
        return sums

    @cached_property
    def _kv_numbers(self) -> float:
        return self.facts.kv_bytes[self.start] or 1

    def _attending(self, tokens: float) -> float:
        """KV bytes that a row attends to, over all layers, with so many tokens before it."""
        return sum(size * (tokens if window is None else min(tokens, window)) for window, size in self._windows.items())


def hop_bytes(facts: ModelFacts, rows: float, last: bool) -> float:
    """Size of the message that a stage sends: hidden states, or from the last stage token ids."""
    return HEADER + (8 * rows if last else rows * facts.hidden_size * facts.item_bytes)


def transfer(facts: ModelFacts, machine: Machine, rows: float, last: bool) -> float:
    """Seconds that this message occupies the link from a machine to the next."""
    return hop_bytes(facts, rows, last) * 8 / machine.network


def load_work(load: Load, rows: float) -> Work:
    """A microbatch of `rows` decoding sequences."""
    return Work(rows, load.attended, sampled=rows)


def chunk_work(load: Load) -> Work:
    """A piece of a prompt."""
    size = min(CHUNK, load.prompt)
    return Work(0, prefill=size, prompts=1, before=load.prompt / 2, sampled=size / load.prompt)
