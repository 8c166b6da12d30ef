"""The KV cache of a stage: one region per slot, as long as its sequence may become, filled from the front."""

from __future__ import annotations

from array import array
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ring.stage.compiler import can_compile
from ring.stage.store import store_runs
from ring.wire.messages import Run


class RunError(ValueError):
    """A run that does not fit what this stage holds."""


class Slot:
    """One sequence's keys and values on this stage.

    `keys[layer]` and `values[layer]` have shape (KV heads, reserve, head size) and are allocated when the layer first
    writes, as only the model knows its heads. Memory is touched only as tokens arrive.
    """

    def __init__(self, layers: int, reserve: int) -> None:
        self.reserve = reserve
        self.length = 0
        self.given_up = False  # after a fault: any run is taken, and its result is of no worth
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.addresses: list[tuple[int, int]] = [(0, 0)] * layers  # of each layer's keys and values

    def open(self, layer: int, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate what a layer's keys and values need that look like these, (1, KV heads, T, head size), if it has not."""
        if self.keys[layer] is None:
            # Zeros where a gap will stay: what was in memory before might be NaN, which fails a whole microbatch.
            make = Tensor.new_zeros if self.given_up else Tensor.new_empty
            keys, values = (make(x, (x.shape[1], self.reserve, x.shape[3])) for x in (key_states, value_states))
            self.keys[layer], self.values[layer] = keys, values
            self.addresses[layer] = keys.data_ptr(), values.data_ptr()

    def heads(self, layer: int) -> int:
        """How many KV heads a layer has that has written some."""
        return self.whole(layer)[0].shape[0]

    def read(self, layer: int, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Views of keys and values at positions `first` to `end - 1`, each (1, KV heads, tokens, head size)."""
        keys, values = self.whole(layer)
        return keys[None, :, first:end], values[None, :, first:end]

    def whole(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer that has written some."""
        keys, values = self.keys[layer], self.values[layer]
        assert keys is not None and values is not None
        return keys, values


def first_key(position: int, window: int | None) -> int:
    """The first position that a token attends to."""
    return max(0, position + 1 - window) if window else 0


class KVCache(Cache):
    """All slots of a stage, written by transformers' own attention modules through `update`.

    Layer indices are the whole model's; this stage's first layer is `first_layer`.
    """

    def __init__(self, first_layer: int, layers: int, device: torch.device) -> None:
        super().__init__(layers=[])
        self.device = device
        self.compiled = can_compile(device)
        self.first_layer = first_layer
        self.layer_count = layers
        self.slots: dict[int, Slot] = {}
        self.packed: list[tuple[Slot, Run]] = []
        self._tokens: dict[int | None, tuple[array[int], int]] = {}
        self._runs: dict[int, array[int]] = {}
        self._masks: dict[tuple[int, int, int, int], Tensor] = {}

    @property
    def reserved(self) -> int:
        """Tokens that the open slots may grow to."""
        return sum(slot.reserve for slot in self.slots.values())

    def begin(self, runs: list[Run]) -> None:
        """Open the slots of new sequences and set the runs that the next forward pass writes.

        Raises:
            RunError: a run that leaves a gap, runs past its reserve or names an unknown or doubled slot. Nothing has
                changed then.
        """
        if len({run.slot for run in runs}) != len(runs):
            raise RunError("two runs of one microbatch name the same slot")
        for run in runs:
            slot = self.slots.get(run.slot)
            if run.answers > run.count:
                raise RunError(f"slot {run.slot}: {run.answers} answers to {run.count} tokens")
            if run.start + run.count > run.reserve:
                raise RunError(f"slot {run.slot}: positions up to {run.start + run.count} but a reserve of {run.reserve}")
            if run.start and slot is not None and slot.given_up:
                continue
            if run.start and (slot is None or run.start > slot.length or run.start + run.count > slot.reserve):
                raise RunError(f"slot {run.slot}: a run at {run.start} does not follow what is cached")
        for run in runs:
            if run.start == 0:
                self.slots[run.slot] = Slot(self.layer_count, run.reserve)
        self.packed = [(self.slots[run.slot], run) for run in runs]
        self._masks.clear()  # those of a forward pass that failed
        self._tokens.clear()
        self._runs.clear()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the packed keys and values, each (1, KV heads, T, head size), into their slots.

        Returns what came in: the attention function reads the slots themselves.
        """
        layer = layer_idx - self.first_layer
        for slot, _ in self.packed:
            slot.open(layer, key_states, value_states)
        if self.compiled:
            store_runs(self.runs(layer), key_states, value_states)
            return key_states, value_states
        places = []
        for slot, run in self.packed:
            places += [states[:, run.start : run.start + run.count] for states in slot.whole(layer)]
        counts = [run.count for _, run in self.packed]
        fresh = zip(torch.split(key_states[0], counts, 1), torch.split(value_states[0], counts, 1), strict=True)
        torch._foreach_copy_(places, [tensor for pair in fresh for tensor in pair])
        return key_states, value_states

    def value_size(self, layer: int) -> int:
        """How wide a head's values are, once the layer has written some."""
        return self.packed[0][0].whole(layer)[1].shape[2]

    def tokens(self, window: int | None) -> tuple[array[int], int]:
        """What `attend` wants to know of each row: its run, and the first and the number of the positions that it sees. And
        the largest such number. All layers of one forward pass share it."""
        if window not in self._tokens:
            table, longest = array("q"), 0
            for index, (_, run) in enumerate(self.packed):
                for position in range(run.start, run.start + run.count):
                    first = first_key(position, window)
                    table.extend((index, first, position + 1 - first))
                    longest = max(longest, position + 1 - first)
            self._tokens[window] = table, longest
        return self._tokens[window]

    def runs(self, layer: int) -> array[int]:
        """What the kernels want to know of each run on a layer that has been opened, FIELDS numbers."""
        if layer not in self._runs:
            table, row = array("q"), 0
            for slot, run in self.packed:
                table.extend((*slot.addresses[layer], slot.reserve, run.start, run.count, row))
                row += run.count
            self._runs[layer] = table
        return self._runs[layer]

    def mask(self, start: int, count: int, first: int, window: int | None) -> Tensor:
        """Which of the keys from position `first` each of `count` tokens from `start` on may see: bool (count, keys).

        Causal and, with a sliding `window`, no further back than `window - 1` tokens. All layers of one forward pass
        share it.
        """
        key = (start, count, first, window or 0)
        found = self._masks.get(key)
        if found is None:
            queries = torch.arange(start, start + count)[:, None]
            keys = torch.arange(first, start + count)[None, :]
            found = keys <= queries
            if window:
                found &= keys > queries - window
            found = self._masks[key] = found.to(self.device)
        return found

    def commit(self) -> None:
        """The forward pass is done: its tokens are cached."""
        for slot, run in self.packed:
            slot.length = run.start + run.count
        self.packed = []
        self._masks.clear()
        self._tokens.clear()
        self._runs.clear()

    def give_up(self, runs: list[Run]) -> None:
        """These runs failed: until their slots are released or opened anew, further runs of them pass without a check."""
        for run in runs:
            slot = self.slots[run.slot] = Slot(self.layer_count, run.reserve)
            slot.given_up = True

    def release(self, slots: list[int]) -> None:
        """Free these slots; unknown ones are ignored, as a Release may come twice."""
        for slot in slots:
            self.slots.pop(slot, None)

    def clear(self) -> None:
        """Free every slot."""
        self.slots.clear()
        self.packed = []
        self._masks.clear()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Never meaningful for packed runs; positions are always given explicitly."""
        return 0

    @property
    def token_bytes(self) -> int:
        """Bytes that one cached token takes on this stage, read off an open slot that every layer has written."""
        slot = next(iter(self.slots.values()))
        tensors = [t for t in slot.keys + slot.values if t is not None]
        return sum(t.shape[0] * t.shape[2] * t.element_size() for t in tensors)
