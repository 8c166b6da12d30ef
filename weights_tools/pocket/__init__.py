"""The pocket model: a very small GPT-2, shipped so that a fresh machine has something real to run.

It was trained on the source of the Python standard library by `weights_tools.pocket.train`; the folder that
`path` returns is an ordinary checkpoint folder, with a model card in its README.md.
"""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """The folder of the shipped checkpoint (config.json, model.safetensors, tokenizer.json, README.md)."""
    return Path(__file__).resolve().parent / "pocket-python"
