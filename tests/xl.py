"""A model of real size: GPT-2 XL's shape (1.5 billion parameters, random weights, float32) over four nodes.

Measures what the README states, from outside: peak memory and speed of the split against `cp`, peak memory of each
node, time to first token and tokens per second; and compares the tokens with transformers'. Run by `make test-xl`;
needs 15 GB of memory and 20 GB of disk. `--small` takes GPT-2 Small's shape instead, to try the script itself.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from transformers import GPT2Config

from ring.answers import Completion
from ring.client import RingClient
from tests.e2e.harness import NodeRing
from tests.e2e.spawn import ColdNode
from tests.models import generate, ragged_prompts
from weights_tools.shard import read_manifest
from weights_tools.tiny import random_model

STAGES = 4
NEW_TOKENS = 24
MB = 1e6
console = Console(highlight=False, soft_wrap=True)


class ColdRing(NodeRing):
    """Nodes that each import everything for themselves, so that their memory is their own."""

    spawn = ColdNode


MEASURE = """import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))"""


def run_measured(*command: str) -> tuple[float, float]:
    """Run a command; returns seconds and peak resident bytes.

    A small process starts it, as Linux counts what the starting process had in memory towards the peak of the started.
    """
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], stdout=subprocess.PIPE, check=True)
    return time.monotonic() - started, float(done.stdout)


def peak_memory(pid: int) -> int:
    """The most resident bytes that a running process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def split_checkpoint(checkpoint: Path, shards: Path, base: float) -> None:
    """Split it, and print how that compares with a copy."""
    size = (checkpoint / "model.safetensors").stat().st_size
    copy_s, _ = run_measured("sh", "-c", f"cp -r {checkpoint} {checkpoint}-copy && sync {checkpoint}-copy/*")
    shutil.rmtree(f"{checkpoint}-copy")
    command = (sys.executable, "-m", "ring", "split", str(checkpoint), "--stages", str(STAGES), "--out", str(shards))
    split_s, peak = run_measured(*command)
    largest = max(entry.bytes for stage in range(STAGES) for entry in read_manifest(shards / f"stage-{stage}").tensors.values())
    console.print(
        f"split: {size / 1e9:.2f} GB in {split_s:.1f} s, checksums and proof included (cp and sync: {copy_s:.1f} s); "
        f"peak {peak / MB:.0f} MB, {(peak - base) / MB:.0f} above an idle import; largest tensor {largest / MB:.0f} MB"
    )
    assert peak - base < largest + 200 * MB


async def ask(clients: str, prompts: list[list[int]]) -> tuple[list[Completion], float]:
    """Ask all at once; returns the answers and the seconds that they took."""
    started = time.monotonic()
    async with RingClient(clients) as ring:
        answers = await asyncio.gather(*(ring.complete(token_ids=prompt, max_tokens=NEW_TOKENS) for prompt in prompts))
    return answers, time.monotonic() - started


def describe(what: str, answers: list[Completion], wall: float) -> None:
    """Print time to first token, inter-token latency and throughput."""
    timings = [answer.timings for answer in answers if answer.timings]
    first = median(timing.ttft_s or 0.0 for timing in timings)
    gap = median(timing.itl_s or 0.0 for timing in timings)
    total = sum(len(answer.token_ids) for answer in answers)
    console.print(
        f"{what}: time to first token {first * 1e3:.0f} ms, inter-token latency {gap * 1e3:.0f} ms, {total / wall:.1f} tokens/s"
    )


def memory_table(ring: NodeRing, base: float) -> Table:
    """Each node's peak memory, held against its limit."""
    table = Table("stage", "layers", "shard MB", "peak MB", "limit MB")
    for stage, node in sorted(ring.nodes.items()):
        manifest, peak = read_manifest(ring.shards / f"stage-{stage}"), peak_memory(node.pid)
        limit = manifest.bytes * 1.15 + base + 150 * MB
        layers = f"{manifest.first_layer}-{manifest.end_layer - 1}"
        table.add_row(str(stage), layers, *(f"{size / MB:,.0f}" for size in (manifest.bytes, peak, limit)))
        assert peak < limit, f"stage {stage} took {peak / MB:.0f} MB, more than {limit / MB:.0f}"
    return table


def main() -> None:
    """All of it, in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="GPT-2 Small's shape")
    shape = {} if parser.parse_args().small else {"n_layer": 48, "n_embd": 1600, "n_head": 25}
    config = GPT2Config(bos_token_id=None, eos_token_id=None, **shape)  # type: ignore[arg-type]
    prompts = ragged_prompts(8, longest=160, vocabulary=config.vocab_size)
    _, base = run_measured(sys.executable, "-c", "import torch, transformers")
    console.print(f"an idle `import torch, transformers` peaks at {base / MB:.0f} MB")
    with tempfile.TemporaryDirectory(prefix="ring-xl-") as folder:
        checkpoint, shards = Path(folder) / "checkpoint", Path(folder) / "shards"
        random_model(config).save_pretrained(checkpoint, max_shard_size="50GB")
        split_checkpoint(checkpoint, shards, base)
        with ColdRing(shards, STAGES) as ring:
            (alone, alone_s), (together, together_s) = (asyncio.run(ask(ring.clients, p)) for p in (prompts[:1], prompts))
            describe(f"one sequence, prompt {len(prompts[0])}", alone, alone_s)
            describe(f"{len(prompts)} sequences", together, together_s)
            console.print(memory_table(ring, base))
        expected = generate(checkpoint, prompts[:3], NEW_TOKENS)
        assert [answer.token_ids for answer in (*alone, *together[1:3])] == expected
        assert together[0].token_ids == alone[0].token_ids
        console.print(f"tokens equal transformers' generate() for {len(expected)} prompts")


if __name__ == "__main__":
    main()
