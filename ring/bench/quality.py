"""What a dtype costs in quality: the pocket model on text that it was not trained on, in every dtype, against float32."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from ring.stage.load import load_stage
from ring.stage.model import StageModel
from ring.wire.messages import Run, Sampling
from weights_tools.pocket import data
from weights_tools.pocket import path as pocket_path
from weights_tools.split import split

WINDOW = 256


@dataclass(slots=True)
class Quality:
    """One dtype: size of the shard in bytes, and over `tokens` predicted ones the perplexity, the mean Kullback-Leibler
    divergence from float32's distribution (nats) and the share of tokens whose likeliest is float32's too."""

    dtype: str
    bytes: int
    tokens: int
    perplexity: float
    divergence: float
    agreement: float


def quality(dtypes: list[str], tokens: int, progress: Callable[[int], None] = lambda _: None) -> list[Quality]:
    """Measure each dtype on the first `tokens` tokens of the held-out text."""
    from transformers import PreTrainedTokenizerFast

    held_out = [source for source in data.sources() if source.held_out]
    text = data.encode(PreTrainedTokenizerFast.from_pretrained(pocket_path()), held_out)
    windows = text[: tokens // WINDOW * WINDOW + 1].unfold(0, WINDOW + 1, WINDOW)
    with tempfile.TemporaryDirectory(prefix="ring-quality-") as folder:
        exact = load(Path(folder), "float32")
        measured = []
        for dtype in dtypes:
            stage = load(Path(folder), dtype)
            loss, divergence, agreed = 0.0, 0.0, 0
            for window in windows:
                ours, theirs = logits(stage, window[:-1]), logits(exact, window[:-1])
                loss += cross_entropy(ours, window[1:], reduction="sum").item()
                divergence += kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="sum").item()
                agreed += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
                progress(1)
            count = windows.shape[0] * WINDOW
            size = stage.manifest.bytes
            measured.append(Quality(dtype, size, count, math.exp(loss / count), divergence / count, agreed / count))
    return measured


def load(folder: Path, dtype: str) -> StageModel:
    """The whole pocket model as one stage."""
    split(str(pocket_path()), folder / dtype, stages=1, dtype=dtype, force=True)
    return load_stage(folder / dtype / "stage-0")


def logits(stage: StageModel, tokens: Tensor) -> Tensor:
    """(T, vocabulary) in float32, for every token of a prompt (T,)."""
    count = len(tokens)
    return stage.forward(tokens, [Run(0, 0, count, count, Sampling(), answers=count, prompt=count)]).float()
