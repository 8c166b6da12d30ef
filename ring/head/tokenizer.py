"""What of the model faces clients: its tokenizer, its end-of-sequence tokens and its context length."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ring.head.spelling import token_bytes
from ring.wire.clients import Logprob, Message
from ring.wire.messages import LogprobRow
from weights_tools.shard import Manifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger("ring")


class PromptTooLong(ValueError):
    """A text that cannot fit the context, whatever its tokens are."""


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

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.encoder.get_vocab()), default=1)

    def prompt_ids(self, prompt: str | None, token_ids: list[int] | None, messages: list[Message] | None = None) -> list[int]:
        """The token ids of a request.

        Raises:
            PromptTooLong: seen from its length alone, as tokenizing megabytes would keep everybody waiting.
            ValueError: not exactly one given, empty, an id outside the vocabulary, or messages that the model's chat
                template does not take.
        """
        if sum(given is not None for given in (prompt, token_ids, messages)) != 1:
            raise ValueError("give either a prompt or token ids, or the messages of a chat")
        if token_ids is None:
            if self.encoder is None:
                raise ValueError("this model has no tokenizer; give the prompt as token ids")
            size = len(prompt) if prompt is not None else sum(len(message.content) for message in messages or [])
            if size > self.context * self.longest_token:
                raise PromptTooLong(f"{size} characters do not fit this model's context of {self.context} tokens")
            token_ids = self.encoder(prompt)["input_ids"] if messages is None else self._chat_ids(messages)
        if not token_ids:
            raise ValueError("the prompt is empty")
        if max(token_ids) >= self.size:
            raise ValueError(f"token id {max(token_ids)} is outside the vocabulary of {self.size}")
        return token_ids

    def _chat_ids(self, messages: list[Message]) -> list[int]:
        """A chat in the model's own form, up to where its answer begins."""
        if not self.encoder.chat_template:
            raise ValueError("this model has no chat template: it only continues text; give it a prompt instead of messages")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            ids: list[int] = self.encoder.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        except Exception as error:  # a template is a program that raises what it likes
            raise ValueError(f"the model's chat template does not take these messages: {error}") from None
        return ids

    def spell(self, row: LogprobRow) -> list[Logprob]:
        """Log-probabilities with the bytes of their tokens."""
        return [Logprob(token, logprob, token_bytes(self.tokenizer, token)) for token, logprob in row]


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
