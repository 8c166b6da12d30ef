"""The bytes of a single token. Text cannot say them: a token may be part of a character only."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Tokenizer | None, token: int) -> bytes:
    """What a token adds to the text, by the two ways of writing bytes as tokens: GPT-2's byte-level alphabet, and
    SentencePiece's `▁` for a space with `<0x0A>` for single bytes. Empty without a tokenizer."""
    written = tokenizer.id_to_token(token) if tokenizer else None
    if tokenizer is None or written is None:
        return b""
    if "ByteLevel" in repr(tokenizer.decoder):
        return b"".join(byte_level().get(character, character.encode()) for character in written)
    if single := BYTE_TOKEN.fullmatch(written):
        return bytes.fromhex(single[1])
    return written.replace("▁", " ").encode()


@cache
def byte_level() -> dict[str, bytes]:
    """GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for U+0100 and on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(0x100 + place): bytes([byte]) for place, byte in enumerate(others)}
