"""Trains the pocket model on the standard library of the Python that runs it.

    python -m weights_tools.pocket.train --out DIR

It needs no download and no accelerator: the defaults suit two processor cores and about 40 minutes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch.nn import functional
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from weights_tools.pocket import card, data

SHORT = 256  # tokens in a window for most of the run: attention over 1024 costs a third of the speed
LONG_SHARE = 0.25  # the last part of the run, on windows as long as the model can read
WARM_UP = 0.02  # share of the run in which the learning rate rises
console = Console()


@dataclass
class Run:
    """A training under way."""

    model: GPT2LMHeadModel
    optimizer: torch.optim.AdamW
    rate: float
    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    random: torch.Generator = field(default_factory=torch.Generator)


def new_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """An untrained GPT-2 of 12 thin layers, so that it cuts into 1, 2, 3, 4, 6 or 12 equal stages."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=data.CONTEXT,
        n_embd=128,
        n_layer=12,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        # The same function as GPT-2's "gelu_new" (which the saved config names), in one fused kernel.
        activation_function="gelu_pytorch_tanh",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config)


def new_optimizer(model: GPT2LMHeadModel) -> torch.optim.AdamW:
    """AdamW that decays matrices only: pulling gains and biases to zero has no use."""
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    vectors = [weight for weight in model.parameters() if weight.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def rate_at(done: float, peak: float) -> float:
    """The learning rate when `done` (0 to 1) of the run is over: a line up, then a line down to zero."""
    return peak * min(done / WARM_UP, (1 - done) / (1 - WARM_UP))


def window_loss(model: GPT2LMHeadModel, windows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Mean loss over windows that each hold one token more than they predict from."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(windows[:, :-1], position_ids=positions, use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


def train_step(run: Run, windows: torch.Tensor, rate: float) -> float:
    """One optimizer step; the loss it saw."""
    length = windows.shape[1] - 1
    # A short window is placed anywhere among the positions, so that the late ones are no strangers later on.
    first = int(torch.randint(data.CONTEXT - length + 1, (1,), generator=run.random))
    loss = window_loss(run.model, windows, torch.arange(first, first + length)[None])
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.steps += 1
    run.tokens += windows.shape[0] * length
    return loss.item()


def phase(run: Run, tokens: torch.Tensor, batch: int, long: bool) -> Iterator[torch.Tensor]:
    """The batches of one part of the run, with the attention that is faster for their length."""
    length = data.CONTEXT if long else SHORT
    run.model.set_attn_implementation("sdpa" if long else "eager")
    return data.batches(tokens, length, max(1, batch // length), run.random)


def train(run: Run, tokens: torch.Tensor, seconds: float, batch: int) -> None:
    """Train until `seconds` are used up, or until Ctrl-C."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=seconds)
        began, average, long = time.monotonic(), 0.0, False
        source = phase(run, tokens, batch, long)
        run.model.train()
        try:
            while run.seconds < seconds:
                if not long and run.seconds >= (1 - LONG_SHARE) * seconds:
                    long, source = True, phase(run, tokens, batch, True)
                loss = train_step(run, next(source), rate_at(run.seconds / seconds, run.rate))
                average = 0.98 * average + 0.02 * loss if average else loss
                run.seconds = time.monotonic() - began
                words = f"step {run.steps}, loss {average:.3f}"
                progress.update(task, completed=run.seconds, description=words)
        except KeyboardInterrupt:
            console.print("stopped early: writing the model as it is")


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the checkpoint folder, the weights in bfloat16."""
    small = copy.deepcopy(model).bfloat16()
    small.config.activation_function = "gelu_new"
    small.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    small.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # written for its owner alone otherwise


def main(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint. Made if it is not there.")],
    minutes: Annotated[float, typer.Option(help="Wall-clock time to train. Loss still falls at 40.", min=0.01)] = 40.0,
    threads: Annotated[int, typer.Option(help="Processor threads to use; no more than there are cores.", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="Fixes the first weights and the order of the text. Timing still varies.")] = 0,
    rate: Annotated[float, typer.Option(help="Highest learning rate, reached after the warm-up.")] = 2.5e-3,
    batch: Annotated[int, typer.Option(help="Tokens in one optimizer step.", min=data.CONTEXT)] = 4096,
    vocabulary: Annotated[int, typer.Option(help="Size of the byte-level BPE vocabulary.", min=300)] = 4096,
) -> None:
    """Train the pocket model: a GPT-2 of 3 million parameters that has read the Python standard library.

    Ctrl-C ends the training early and still writes a whole model.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    files = data.sources()
    training = [file for file in files if not file.held_out]
    held_out = [file for file in files if file.held_out]
    console.print(f"{len(training)} files to train on, {len(held_out)} held out; building the tokenizer")
    tokenizer = data.train_tokenizer((file.text for file in training), vocabulary)
    tokens = data.encode(tokenizer, training)
    model = new_model(tokenizer)
    run = Run(model, new_optimizer(model), rate)
    run.random.manual_seed(seed)
    train(run, tokens, minutes * 60, batch)
    save(model, tokenizer, out)
    counts = card.Training(
        files=len(training),
        bytes=sum(len(file.text.encode()) for file in training),
        tokens=len(tokens),
        tokens_read=run.tokens,
        steps=run.steps,
        seconds=run.seconds,
        threads=threads,
        seed=seed,
    )
    result = card.write(out, held_out, counts)
    console.print(f"held out: {result.nats_per_token:.3f} nats per token, {result.bits_per_byte:.3f} bits per byte")


if __name__ == "__main__":
    typer.run(main)
