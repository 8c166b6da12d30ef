"""Whether a model fits, and what would have to change if it does not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import msgspec

from ring.plan.cost import PACKING, PROCESS, Load, StageCost
from ring.plan.machines import Machine
from ring.plan.units import show_bytes
from weights_tools.facts import ITEM_BYTES, ModelFacts


class DoesNotFit(ValueError):
    """A model that these machines cannot hold; the message is one sentence that says how short they are."""


def layer_memory(facts: ModelFacts, load: Load) -> list[int]:
    """Bytes of memory for each layer, the first with the embedding and the last with the head, beside the node itself."""
    costs = (StageCost(facts, Machine("", 0), layer, layer + 1) for layer in range(facts.layers))
    return [int(cost.weight_bytes * PACKING) + cost.kv_token_bytes * load.kv_tokens for cost in costs]


def reach(facts: ModelFacts, machines: Sequence[Machine], load: Load) -> int:
    """How many layers find a place when each machine takes as many as it can; no cut in this order places more."""
    sums = [0, *accumulate(layer_memory(facts, load))]
    placed = 0
    for machine in machines:
        room = machine.memory - PROCESS
        while placed < facts.layers and sums[placed + 1] - sums[placed] <= room:
            room -= sums[placed + 1] - sums[placed]
            placed += 1
    return placed


def explain(facts: ModelFacts, machines: Sequence[Machine], load: Load) -> DoesNotFit:
    """Why nothing fits, how much memory is short, and what would fit."""
    placed = reach(facts, machines, load)
    short = sum(layer_memory(facts, load)[placed:])
    kv = sum(facts.kv_bytes) * load.kv_tokens
    has = sum(machine.memory for machine in machines)
    count = "the machine has" if len(machines) == 1 else f"the {len(machines)} machines have"
    what = (
        f"{facts.name} does not fit: {show_bytes(facts.bytes)} of weights as {facts.dtype}, {show_bytes(kv)} of KV cache for "
        f"{load.streams} x {load.context:,} tokens and {show_bytes(PROCESS)} for each node, but {count} {show_bytes(has)}; "
        f"layers {placed}-{facts.layers - 1} find no place, {show_bytes(short)} are short"
    )
    options = remedies(facts, machines, load)
    return DoesNotFit(what + (f"; it would fit {', or '.join(options)}" if options else ""))


def remedies(facts: ModelFacts, machines: Sequence[Machine], load: Load) -> list[str]:
    """What would make it fit, each by itself."""
    options = []
    if ITEM_BYTES[facts.dtype] > 2:
        half = halved(facts)
        if reach(half, machines, load) == facts.layers:
            options.append("as bfloat16 (--dtype bfloat16)")
    least = load.prompt + load.new_tokens
    if load.context > least and (context := longest_context(facts, machines, load, least)):
        options.append(f"with a context of {context:,} (--context)")
    if load.streams > 1 and (streams := most_streams(facts, machines, load)):
        options.append(f"with {streams} stream{'s' if streams > 1 else ''} (--streams)")
    largest = max(machines, key=lambda machine: machine.memory)
    for more in range(1, facts.layers + 1):
        if reach(facts, [*machines, *[largest] * more], load) == facts.layers:
            options.append(f"on {more} more machine{'s' if more > 1 else ''} like {largest.name}")
            break
    return options


def halved(facts: ModelFacts) -> ModelFacts:
    """The model in bfloat16 instead of float32."""
    changes = {name: [size // 2 for size in getattr(facts, name)] for name in ("layer_bytes", "expert_bytes", "kv_bytes")} | {
        name: getattr(facts, name) // 2 for name in ("head_bytes", "embedding_bytes", "tied_bytes")
    }
    return msgspec.structs.replace(facts, dtype="bfloat16", **changes)


def longest_context(facts: ModelFacts, machines: Sequence[Machine], load: Load, least: int) -> int:
    """The longest context below the asked one that fits; 0 if not even `least`."""
    low, high = least - 1, load.context
    while high - low > 1:
        middle = (low + high) // 2
        fits = reach(facts, machines, msgspec.structs.replace(load, context=middle)) == facts.layers
        low, high = (middle, high) if fits else (low, middle)
    return low if low >= least else 0


def most_streams(facts: ModelFacts, machines: Sequence[Machine], load: Load) -> int:
    """Most streams that fit with the asked context; 0 if not even one."""
    for streams in range(load.streams - 1, 0, -1):
        if reach(facts, machines, msgspec.structs.replace(load, streams=streams)) == facts.layers:
            return streams
    return 0
