"""The pocket model's card: what is measured on the saved checkpoint, put in words."""

from __future__ import annotations

import math
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from transformers import GenerationConfig, GPT2LMHeadModel, PreTrainedTokenizerFast

from weights_tools.pocket import data

PROMPTS = ("def ", "import os", "class Stack:", "for i in range(")
SAMPLE_TOKENS = 80


@dataclass(frozen=True)
class Training:
    """What went into the training."""

    files: int
    bytes: int
    tokens: int
    tokens_read: int
    steps: int
    seconds: float
    threads: int
    seed: int


@dataclass(frozen=True)
class Result:
    """What was measured on the saved checkpoint."""

    parameters: int
    weight_bytes: int
    vocabulary: int
    files: int
    bytes: int
    tokens: int
    nats: float
    greedy: list[str]
    sampled: list[str]

    @property
    def nats_per_token(self) -> float:
        """Mean held-out loss of a token, the figure most training logs show."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Held-out loss that does not depend on the tokenizer, and so compares with other models."""
        return self.nats / math.log(2) / self.bytes


@torch.inference_mode()
def held_out_loss(model: GPT2LMHeadModel, tokens: torch.Tensor) -> float:
    """Summed loss, in nats, over every token of a row but its first, read in windows of the full context."""
    total = 0.0
    for start in range(0, len(tokens) - 1, data.CONTEXT):
        window = tokens[start : start + data.CONTEXT + 1][None]
        logits = model(window[:, :-1], use_cache=False).logits[0]
        total += functional.cross_entropy(logits.float(), window[0, 1:], reduction="sum").item()
    return total


@torch.inference_mode()
def continuation(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompt: str, *, sampled: bool) -> str:
    """The prompt and what the model makes of it: the likeliest token each time, or (seeded) one by chance."""
    torch.manual_seed(0)
    ids = torch.tensor([tokenizer.backend_tokenizer.encode(prompt).ids])
    settings = GenerationConfig(
        max_new_tokens=SAMPLE_TOKENS,
        do_sample=sampled,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **({"temperature": 0.7, "top_p": 0.9, "top_k": 0} if sampled else {}),
    )
    written = model.generate(ids, settings, attention_mask=torch.ones_like(ids))  # type: ignore[misc]
    return str(tokenizer.decode(written[0], skip_special_tokens=True))


def measure(folder: Path, held_out: list[data.Source]) -> Result:
    """Load the checkpoint in `folder` as it was saved, and measure it."""
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.bfloat16)
    model.train(False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokens = data.encode(tokenizer, held_out)
    return Result(
        parameters=model.num_parameters(),
        weight_bytes=(folder / "model.safetensors").stat().st_size,
        vocabulary=len(tokenizer),
        files=len(held_out),
        bytes=sum(len(file.text.encode()) for file in held_out),
        tokens=len(tokens) - 1,
        nats=held_out_loss(model, tokens),
        greedy=[continuation(model, tokenizer, prompt, sampled=False) for prompt in PROMPTS],
        sampled=[continuation(model, tokenizer, prompt, sampled=True) for prompt in PROMPTS],
    )


def write(folder: Path, held_out: list[data.Source], training: Training) -> Result:
    """Measure the checkpoint in `folder` and write its model card there."""
    result = measure(folder, held_out)
    (folder / "README.md").write_text(words(training, result), encoding="utf-8")
    return result


def _samples(texts: list[str]) -> str:
    pairs = zip(PROMPTS, texts, strict=True)
    return "\n\n".join(f"`{prompt}`\n\n```text\n{text.rstrip()}\n```" for prompt, text in pairs)


def words(training: Training, result: Result) -> str:
    """The card, as Markdown."""
    return f"""\
---
license: other
license_name: psf-2.0
license_link: https://docs.python.org/3/license.html
pipeline_tag: text-generation
tags: [gpt2, python]
---

# The pocket model

A GPT-2 of {result.parameters / 1e6:.1f} million parameters ({result.weight_bytes / 1e6:.1f} MB in bfloat16)
that has read the source of the Python standard library and nothing else. It is here so that a fresh machine
has something real to run with no download: given `def ` or an import it goes on with text that is plainly
Python. It is too small to write programs.

- **Shape**: 12 layers, so that it cuts into 1, 2, 3, 4, 6 or 12 equal stages; width 128, 4 heads,
  1024 positions, input and output embeddings tied.
- **Tokenizer**: its own byte-level BPE of {result.vocabulary} tokens. Every text encodes, and decodes to
  itself. A line end and the indent after it make one token. `{data.END_OF_TEXT}` stands before each file.

## Data and licence

The `.py` files of the standard library of CPython {platform.python_version()}, without its tests, character
tables, built documentation and generated files: {training.files} files, {training.bytes / 1e6:.2f} MB,
{training.tokens:,} tokens. The library is under the Python Software Foundation License, version 2
(https://docs.python.org/3/license.html); a few of its files carry an older permissive notice of their own.
{sys.copyright.splitlines()[0]} All Rights Reserved.
The weights are offered under the same licence. What the model writes may repeat lines of the library.

Another {result.files} files ({result.bytes / 1e3:.0f} kB), chosen by a hash of their path, were kept from
both the tokenizer and the model; the loss below was measured on them.

## Training

{training.seconds / 60:.0f} minutes on {training.threads} threads of an ordinary server processor, and no
accelerator. {training.steps:,} steps, {training.tokens_read / 1e6:.1f} million tokens: every file was
read about {training.tokens_read / training.tokens:.1f} times. AdamW, bfloat16 arithmetic over float32
weights, windows of 256 tokens at random positions for the first three quarters of the time and of
1024 tokens for the rest. Made by `python -m weights_tools.pocket.train` (seed {training.seed}).

## Held-out loss

Measured on the bfloat16 weights as saved, in windows of 1024 tokens:

| nats per token | bits per byte | tokens |
| --- | --- | --- |
| {result.nats_per_token:.3f} | {result.bits_per_byte:.3f} | {result.tokens:,} |

The held-out files come from the same library, with its habits and its authors; other people's Python will
score worse.

## Samples

Greedy (the likeliest token each time), {SAMPLE_TOKENS} tokens:

{_samples(result.greedy)}

Sampled at temperature 0.7 and top-p 0.9, {SAMPLE_TOKENS} tokens:

{_samples(result.sampled)}

## Limits

It knows what Python looks like, not what it means: expect names that do not exist, calls with the wrong
arguments, and greedy text that goes in circles. It knows no other language and no facts, and it can repeat
the library's own lines. It has no positions past 1024 tokens. Use it to see that machines work, not for what
it says.
"""
