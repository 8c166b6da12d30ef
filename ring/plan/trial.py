"""A stage of random weights, made in memory: what a machine does with it, it does with a stage of any model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weights_tools.facts import ITEM_BYTES

if TYPE_CHECKING:
    from torch import Tensor

    from ring.stage.model import StageModel
    from ring.wire.messages import Run

HIDDEN, WIDE, LAYERS = 1024, 4096, 4
"""A Llama's layers of 16 million weights: four of them are more than caches hold, in int8 too."""
TINY = 64
"""The hidden size of layers whose weights cost nothing."""
CONTEXT = 16
"""Tokens before a decode step's."""


@dataclass
class Trial:
    """Layers of a Llama in a dtype, `small` or of the usual size, and steps of them."""

    dtype: str
    small: bool = False
    stage: StageModel = field(init=False)

    def __post_init__(self) -> None:
        import torch
        from transformers import AutoConfig

        from ring.stage.model import StageModel
        from weights_tools.shard import Manifest

        hidden, wide = (TINY, 2 * TINY) if self.small else (HIDDEN, WIDE)
        config = AutoConfig.for_model(
            "llama",
            hidden_size=hidden,
            intermediate_size=wide,
            num_hidden_layers=LAYERS,
            num_attention_heads=hidden // 64 * 2,
            num_key_value_heads=hidden // 64,
            head_dim=32,
            vocab_size=64,
        )
        # The middle one of three stages: nothing but layers.
        manifest = Manifest(0, "", "llama", "trial", 1, 3, 0, LAYERS, LAYERS, self.dtype, 0, {})
        self.stage = StageModel(config, manifest)
        with torch.inference_mode():
            self.stage.fill(self._weights())

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        import torch

        from weights_tools.quantize import quantize

        for name, empty in list(self.stage.model.named_parameters()):
            if not name.startswith(self.stage.layers_path):
                continue
            weight = torch.randn(empty.shape).mul_(0.02)
            yield name, quantize(weight) if self.dtype == "int8" and weight.dim() == 2 else weight.to(empty.dtype)

    @property
    def bytes(self) -> int:
        """Its weights."""
        return LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2 + 3 * HIDDEN * WIDE) * ITEM_BYTES[self.dtype]

    def fill(self, sequences: int) -> None:
        """Have so many sequences of CONTEXT tokens cached."""
        for slot in range(sequences):
            self.prefill(CONTEXT, slot)

    def decode(self, sequences: int) -> None:
        """A step of the first sequences."""
        from ring.wire.messages import Run

        self._forward([Run(slot, CONTEXT, 1, 2 * CONTEXT) for slot in range(sequences)])

    def prefill(self, tokens: int, slot: int = 0) -> None:
        """A prompt of so many tokens."""
        from ring.wire.messages import Run

        self._forward([Run(slot, 0, tokens, max(tokens, 2 * CONTEXT), prompt=tokens)])

    def _forward(self, runs: list[Run]) -> None:
        import torch

        rows = sum(run.count for run in runs)
        self.stage.forward(torch.zeros(rows, self.stage.hidden_size, dtype=self.stage.dtype), runs)
