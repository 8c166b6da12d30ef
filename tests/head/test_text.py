"""Text as it streams: whole characters, exact in the end, stopped where asked."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ring.head.text import TextStream


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token a byte, so that every character beyond ASCII takes several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def stream(tokenizer: Tokenizer, text: str, stop: list[str], prompt: str = "x") -> tuple[list[str], TextStream]:
    made = TextStream(tokenizer, tokenizer.encode(prompt).ids, stop)
    pieces = []
    for token in tokenizer.encode(text).ids:
        pieces.append(made.push(token))
        if made.stopped:
            break
    return [*pieces, made.finish()], made


@pytest.mark.parametrize("text", ["plain", "naïve Ünïcode 日本語 🎉!", " leading", "tabs\t\nand\r\nlines", "👩‍👩‍👧 family"])
def test_pieces_join_to_the_text_and_are_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    pieces, _ = stream(tokenizer, text, [])
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_a_character_that_is_never_completed_shows_in_the_end(tokenizer: Tokenizer) -> None:
    made = TextStream(tokenizer, tokenizer.encode("x").ids, [])
    first_bytes = tokenizer.encode("a日").ids[:-1]
    assert "".join(made.push(token) for token in first_bytes) == "a"
    assert made.finish() == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["thr", "two"], "one "),
        ("aaab", ["aab"], "a"),
        ("ab", ["abc"], "ab"),
        ("abcabd", ["abd"], "abc"),
        ("日本語", ["本"], "日"),
        ("none of it", ["zzz"], "none of it"),
    ],
)
def test_stop_strings(tokenizer: Tokenizer, text: str, stop: list[str], expected: str) -> None:
    pieces, made = stream(tokenizer, text, stop)
    assert "".join(pieces) == expected
    assert made.stopped == any(s in text for s in stop)


def test_nothing_of_a_stop_string_is_ever_shown(tokenizer: Tokenizer) -> None:
    pieces, _ = stream(tokenizer, "say STOP now", ["STOP"])
    shown = ""
    for piece in pieces:
        shown += piece
        assert "S" not in shown


def test_without_a_tokenizer_there_is_no_text() -> None:
    made = TextStream(None, [1, 2], ["x"])
    assert made.push(3) == ""
    assert made.finish() == ""
