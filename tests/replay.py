"""Does it matter that a replay prefills in one go what was decoded token by token? `make replay` counts.

After a failure a sequence's KV cache is rebuilt by ordinary prefill of the prompt and all tokens so far. The chunks are
not those of the undisturbed run, so the sums are rounded otherwise. For each prompt, every token is generated once
without and once with a replay in the middle, and the answers are compared.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ring.stage.load import load_stage
from ring.stage.model import StageModel
from ring.stage.sampling import sample
from ring.wire.messages import Run, Sampling
from tests.models import make_checkpoint
from weights_tools.pocket import path as pocket_path
from weights_tools.split import split

NEW_TOKENS = 32
BATCH = 16
GREEDY, SAMPLED = Sampling(), Sampling(0.8, 0.95, 0, 7)


def generate(stage: StageModel, prompts: list[list[int]], sampling: Sampling, replay_at: int | None = None) -> list[list[int]]:
    """Answers to a batch of prompts; after `replay_at` tokens all caches are lost and rebuilt."""
    answers: list[list[int]] = [[] for _ in prompts]
    stage.cache.clear()
    for step in range(NEW_TOKENS):
        known = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        starts = [0 if step in (0, replay_at) else len(ids) - 1 for ids in known]
        runs = [
            Run(slot, start, len(ids) - start, len(prompts[slot]) + NEW_TOKENS, sampling)
            for slot, (ids, start) in enumerate(zip(known, starts, strict=True))
        ]
        fed = torch.tensor([token for ids, start in zip(known, starts, strict=True) for token in ids[start:]])
        drawn = sample(stage.forward(fed, runs), [sampling] * len(runs), [len(ids) for ids in known])
        for answer, token in zip(answers, drawn, strict=True):
            assert token is not None
            answer.append(token)
    return answers


def count_changed(stage: StageModel, prompts: int, sampling: Sampling, seed: int = 0) -> int:
    """How many of so many random prompts are answered otherwise with a replay."""
    generator = torch.Generator().manual_seed(seed)
    changed = 0
    for first in track(range(0, prompts, BATCH), transient=True, disable=prompts < 200):
        lengths = torch.randint(1, 60, (min(BATCH, prompts - first),), generator=generator).tolist()
        batch = [torch.randint(1, stage.vocabulary, (length,), generator=generator).tolist() for length in lengths]
        at = int(torch.randint(1, NEW_TOKENS, (1,), generator=generator))
        one, other = generate(stage, batch, sampling), generate(stage, batch, sampling, at)
        changed += sum(a != b for a, b in zip(one, other, strict=True))
    return changed


def main() -> None:
    """The pocket model and random ones, in float32 and bfloat16, greedy and sampled."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=1000)
    count = parser.parse_args().prompts
    torch.set_num_threads(1)
    table = Table("model", "dtype", "sampling", "prompts", "answers changed by a replay")
    with tempfile.TemporaryDirectory(prefix="ring-replay-") as folder:
        checkpoints = {"pocket": pocket_path(), "random llama": make_checkpoint(Path(folder) / "llama")}
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
