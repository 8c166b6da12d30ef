"""The proof of a cut: a tiny random model of the same config must say the same, whole and as a ring.

It takes the whole way of a real checkpoint: saved, split into shards, loaded as stages, run with packed batches, prefill
chunks and decode steps of several prompts mixed. So no list of blessed architectures is needed: what a ring cannot
compute exactly is refused before a shard is written.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ring.stage.load import load_stage
from ring.stage.model import StageModel
from ring.wire.messages import Run, Sampling
from weights_tools.skeleton import Unservable
from weights_tools.split import split
from weights_tools.tiny import VOCABULARY, random_model, shrink

LENGTHS, PROMPTS = (23, 9, 14), (17, 5, 10)
# Microbatches of (prompt, start, count): chunks of several prompts together, chunks beside decode steps, and all again.
SCHEDULE = [
    [(0, 0, 5), (1, 0, 4)],
    [(0, 5, 9), (2, 0, 10)],
    [(1, 4, 1), (0, 14, 3), (2, 10, 1)],
    [(0, 17, 1), (1, 5, 1), (2, 11, 1)],
    [(2, 12, 1), (0, 18, 1), (1, 6, 1)],
    [(2, 13, 1), (0, 19, 4), (1, 7, 2)],
]
TOLERANCE = 1e-3
"""Largest difference of a logit, in standard deviations of the logits. Rounding stays under 1e-4; a wrong mask, position
or scale moves logits by whole deviations."""


def prove(config: PreTrainedConfig) -> None:
    """Check that a model of this config can be cut and served.

    Raises:
        Unservable: it cannot, with the reason in one sentence.
    """
    try:
        worst = largest_difference(config)
    except Unservable:
        raise
    except Exception as error:  # an architecture may fail in any way; the user needs the sentence
        raise Unservable(
            f"'{config.model_type}' cannot be served: a tiny model of this config fails when it is cut "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        ) from error
    if not worst <= TOLERANCE:
        raise Unservable(
            f"'{config.model_type}' cannot be served: cut into stages, a tiny model of this config gives other logits than "
            f"the whole (off by {worst:.2g} standard deviations)"
        )


def largest_difference(config: PreTrainedConfig) -> float:
    """The largest difference of a logit between the whole tiny model and the same cut, in standard deviations."""
    tiny = shrink(config)
    whole = random_model(tiny)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in LENGTHS]
    with torch.inference_mode():
        expected = [whole(input_ids=prompt[None]).logits[0] for prompt in prompts]
    with tempfile.TemporaryDirectory(prefix="ring-proof-") as folder:
        whole.save_pretrained(Path(folder) / "tiny")
        stages = min(3, tiny.num_hidden_layers)
        split(str(Path(folder) / "tiny"), Path(folder) / "shards", stages=stages)
        ring = [load_stage(Path(folder) / "shards" / f"stage-{k}") for k in range(stages)]
        worst = 0.0
        for microbatch in SCHEDULE:
            logits = run_ring(ring, prompts, microbatch)
            for (prompt, start, count), row in zip(microbatch, logits, strict=True):
                wanted = expected[prompt][start + count - 1]
                worst = max(worst, float((row - wanted).abs().max() / wanted.std()))
    return worst


def run_ring(ring: list[StageModel], prompts: list[Tensor], microbatch: list[tuple[int, int, int]]) -> Tensor:
    """Logits (runs, vocabulary) of the last token of each run."""
    runs = [
        Run(prompt, start, count, LENGTHS[prompt], Sampling(), prompt=PROMPTS[prompt]) for prompt, start, count in microbatch
    ]
    passed = torch.cat([prompts[prompt][start : start + count] for prompt, start, count in microbatch])
    for stage in ring:
        passed = stage.forward(passed, runs)
    return passed
