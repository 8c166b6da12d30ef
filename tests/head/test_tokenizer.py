"""What the head makes of prompts: text, token ids, chats; and how it spells single tokens."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer

from ring.head.spelling import token_bytes
from ring.head.tokenizer import Vocabulary
from ring.wire.clients import Message
from weights_tools.pocket import path as pocket_path

TEMPLATE = (
    "{% if messages[0].role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def pocket(template: str | None = None) -> Vocabulary:
    encoder = AutoTokenizer.from_pretrained(pocket_path())
    encoder.chat_template = template
    return Vocabulary("pocket", 4096, 1024, frozenset([0]), encoder)


def test_a_chat_is_written_as_the_template_says() -> None:
    vocabulary = pocket(TEMPLATE)
    messages = [Message("system", "short"), Message("user", "hello")]
    ids = vocabulary.prompt_ids(None, None, messages)
    assert vocabulary.encoder.decode(ids) == "[system]short\n[user]hello\n[assistant]"


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (None, [Message("user", "x")], "has no chat template"),
        (TEMPLATE, [Message("tool", "x")], "no tools here"),
        (TEMPLATE, [], "does not take these messages"),
    ],
)
def test_a_chat_that_cannot_be_written(template: str | None, messages: list[Message], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pocket(template).prompt_ids(None, None, messages)


def test_exactly_one_kind_of_prompt() -> None:
    with pytest.raises(ValueError, match="give either"):
        pocket().prompt_ids("x", None, [Message("user", "x")])


def test_byte_level_tokens_spell_every_byte() -> None:
    encoder = AutoTokenizer.from_pretrained(pocket_path())
    text = "naïve — 日本語 🙂\n\tend"
    ids = encoder(text)["input_ids"]
    assert b"".join(token_bytes(encoder.backend_tokenizer, token) for token in ids) == text.encode()
    assert token_bytes(encoder.backend_tokenizer, 0) == b"<|endoftext|>"
    assert token_bytes(encoder.backend_tokenizer, 99_999) == b""
    assert token_bytes(None, 5) == b""


def test_sentencepiece_tokens_spell_spaces_and_bytes() -> None:
    tokenizer = Tokenizer(models.BPE({"▁the": 0, "<0xE2>": 1, "é": 2}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert [token_bytes(tokenizer, token) for token in range(3)] == [b" the", b"\xe2", "é".encode()]
