"""Does a stream go on after a failure with the tokens that it would have had without? `make replay` counts.

The real scheduler and a real stage, in one process, once undisturbed and once with every KV cache lost at some moment, in
prefill or in decode. With float32 and bfloat16, alone and among others, with guesses and without.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ring.head.drafts import Drafter
from ring.head.scheduler import Scheduler
from ring.head.sequence import Sequence
from ring.stage.load import load_stage
from ring.stage.model import StageModel
from ring.stage.sampling import sample
from ring.wire.messages import Sampling
from tests.models import make_checkpoint
from weights_tools.pocket import path as pocket_path
from weights_tools.split import split

NEW_TOKENS = 32
BATCH = 16
GREEDY, SAMPLED = Sampling(), Sampling(0.8, 0.95, 0, 7)


def generate(
    stage: StageModel, prompts: list[list[int]], sampling: Sampling, lost_after: int | None = None, guess: bool = False
) -> list[list[int]]:
    """Answers to a batch of prompts; after so many microbatches all caches are lost."""
    stage.cache.clear()
    scheduler = Scheduler(stages=2, kv_tokens=1 << 20, max_running=BATCH)
    sequences = [
        Sequence(number, prompt, NEW_TOKENS, sampling, drafter=Drafter() if guess else None)
        for number, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        scheduler.add(sequence)
    while scheduler.running or scheduler.waiting:
        stage.cache.release(scheduler.take_released())
        microbatch = scheduler.next_microbatch()
        if microbatch is None or microbatch.number == lost_after:
            lost_after = None
            scheduler.rewind()
            stage.cache.clear()
            continue
        runs = [run for _, run in microbatch.parts]
        logits = stage.forward(torch.tensor(microbatch.token_ids()), runs)
        answered = [(run.sampling, position) for run in runs for position in run.answered]
        drawn = sample(logits, [s for s, _ in answered if s is not None], [position for _, position in answered])
        for sequence, _, _ in scheduler.complete(microbatch.number, drawn):
            if len(sequence.generated) >= NEW_TOKENS and not sequence.finished:
                scheduler.remove(sequence)
    return [sequence.generated[:NEW_TOKENS] for sequence in sequences]


def count_changed(stage: StageModel, prompts: int, sampling: Sampling, seed: int = 0) -> int:
    """How many of so many random prompts are answered otherwise after a loss, or alone with guesses."""
    chance = random.Random(seed)
    changed = 0
    for first in track(range(0, prompts, BATCH), transient=True, disable=prompts < 200):
        batch = [
            [chance.randrange(1, stage.vocabulary) for _ in range(chance.randint(1, 100))]
            for _ in range(min(BATCH, prompts - first))
        ]
        undisturbed = generate(stage, batch, sampling)
        disturbed = generate(stage, batch, sampling, chance.randrange(NEW_TOKENS))
        disturbed[0] = generate(stage, batch[:1], sampling, chance.randrange(NEW_TOKENS), guess=True)[0]
        changed += sum(a != b for a, b in zip(undisturbed, disturbed, strict=True))
    return changed


def main() -> None:
    """The pocket model and random ones, in float32 and bfloat16, greedy and sampled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=1024)
    count = parser.parse_args().prompts
    torch.set_num_threads(1)
    table = Table("model", "dtype", "sampling", "prompts", "answers changed by a loss")
    with tempfile.TemporaryDirectory(prefix="ring-replay-") as folder:
        checkpoints = {"pocket": pocket_path()}
        for name in ("gpt2", "llama", "mistral"):
            checkpoints[f"random {name}"] = make_checkpoint(Path(folder) / name, name)
        for name, checkpoint in checkpoints.items():
            for dtype in ("float32", "bfloat16"):
                shards = Path(folder) / f"{checkpoint.name}-{dtype}"
                split(str(checkpoint), shards, stages=1, dtype=dtype)
                stage = load_stage(shards / "stage-0")
                for sampling in (GREEDY, SAMPLED):
                    changed = count_changed(stage, count, sampling)
                    kind = "sampled" if sampling.temperature else "greedy"
                    table.add_row(name, dtype, kind, f"{count:,}", f"{changed} ({changed / count:.1%})")
    Console().print(table)


if __name__ == "__main__":
    main()
