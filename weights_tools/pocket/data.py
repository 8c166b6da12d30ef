"""What the pocket model reads: the standard library's source, some of it held out, as tokens."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
CONTEXT = 1024
HELD_OUT_SHARE = 0.03

# Folders and files that would teach tables, test fixtures or this machine's build instead of Python.
SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "encodings",
        "idle_test",
        "lib-dynload",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
    }
)
SKIPPED_FILES = frozenset(["html/entities.py", "stringprep.py"])
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")

# A word takes the space before it along, as in GPT-2, except after these keywords: there the space is a token
# of its own, so that "def" and "def " (which people type as prompts) both end where a training token ends.
KEYWORDS = (
    *("and", "as", "assert", "async", "await", "class", "def", "del", "elif", "except", "for", "from"),
    *("global", "if", "import", "in", "is", "lambda", "not", "or", "raise", "return", "while", "with"),
    "yield",
)

# The cuts BPE may not merge across. In order: line ends with the indent that follows, the space after a
# keyword, names (an underscore is a letter here), digits by threes, punctuation, other spaces.
SPLIT = "|".join(
    [
        r"[\r\n]+[^\S\r\n]*",
        "(?<=" + "|".join(rf"\b{word}" for word in KEYWORDS) + r") (?=\S)",
        r" ?[\p{L}\p{M}_]+",
        r" ?\p{N}{1,3}",
        r" ?[^\s\p{L}\p{M}\p{N}_]+",
        r"[^\S\r\n]+(?!\S)",
        r"\s+",
    ]
)


@dataclass(frozen=True)
class Source:
    """One file of the standard library: its path below the library's folder, and its text."""

    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether this file is kept from training; by a hash of its name, so that order has no say."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def _wanted(name: Path) -> bool:
    if name.as_posix() in SKIPPED_FILES or SKIPPED_FOLDERS.intersection(name.parts):
        return False
    return not any(part.startswith(SKIPPED_PREFIXES) for part in name.parts)


def sources() -> list[Source]:
    """The standard library of the running Python, less its tests and tables, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root)
        if _wanted(name):
            try:
                found.append(Source(name.as_posix(), file.read_text(encoding="utf-8")))
            except UnicodeDecodeError:
                continue  # the few files in an older encoding are not worth guessing at
    return found


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over `texts`: every text encodes, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def encode(tokenizer: PreTrainedTokenizerFast, files: list[Source]) -> torch.Tensor:
    """All files as one row of tokens: an end-of-text token before each file, and one at the very end."""
    separator = tokenizer.get_vocab()[END_OF_TEXT]
    row: list[int] = []
    for file in files:
        row += [separator, *tokenizer.backend_tokenizer.encode(file.text).ids]
    return torch.tensor([*row, separator], dtype=torch.long)


def batches(tokens: torch.Tensor, length: int, rows: int, random: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless batches of `rows` windows of `length` tokens, and the one token that follows each.

    Each pass over the text cuts it anew from a random first token and shuffles the windows, so that a pass
    shows everything about once and no two passes cut at the same places.
    """
    while True:
        first = int(torch.randint(length, (1,), generator=random))
        windows = tokens[first:].unfold(0, length + 1, length)
        order = torch.randperm(len(windows), generator=random)
        for start in range(0, len(windows) - rows + 1, rows):
            yield windows[order[start : start + rows]]
