"""What of the model faces clients: its tokenizer, its end-of-sequence tokens and its context length."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weights_tools.shard import Manifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger("ring")


@dataclass(frozen=True)
class Vocabulary:
    """The text side of a model. `encoder` is transformers' tokenizer, `tokenizer` the engine inside it; both None for a
    checkpoint without one."""

    name: str
    size: int
    context: int
    eos: frozenset[int]
    encoder: Any = None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The engine that turns ids into text, token by token."""
        return None if self.encoder is None else self.encoder.backend_tokenizer

    def prompt_ids(self, prompt: str | None, token_ids: list[int] | None) -> list[int]:
        """The token ids of a request.

        Raises:
            ValueError: neither or both given, empty, or an id outside the vocabulary.
        """
        if (prompt is None) == (token_ids is None):
            raise ValueError("give either a prompt or token ids")
        if token_ids is None:
            if self.encoder is None:
                raise ValueError("this model has no tokenizer; give the prompt as token ids")
            token_ids = self.encoder(prompt)["input_ids"]
        if not token_ids:
            raise ValueError("the prompt is empty")
        if max(token_ids) >= self.size:
            raise ValueError(f"token id {max(token_ids)} is outside the vocabulary of {self.size}")
        return token_ids


def load_vocabulary(folder: Path, manifest: Manifest) -> Vocabulary:
    """Read the text side of stage 0's shard."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    eos = config.eos_token_id
    if (folder / "generation_config.json").exists():
        eos = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id or eos
    ends = frozenset([eos] if isinstance(eos, int) else eos or [])
    encoder = None
    if (folder / "tokenizer.json").exists():
        encoder = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        encoder.model_max_length = int(1e30)  # the head measures prompts itself, with a better message
    context = getattr(config, "max_position_embeddings", None) or 1 << 20
    return Vocabulary(manifest.name, config.vocab_size, context, ends, encoder)
