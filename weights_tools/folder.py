"""A checkpoint's folder, as far as it can be read without torch: its name, and the JSON files in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one sentence that says what to do."""


def model_name(folder: Path) -> str:
    """A folder's name; for one in the Hub's cache (`models--Qwen--Qwen2-7B/snapshots/…`) the repository's, `Qwen2-7B`.

    Without the owner, so that a model has the same name, and its shards the same bytes, whichever way it came here.
    """
    folder = folder.resolve()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: no such file, or no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is no checkpoint: it has no {path.name}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({summarize(error)}); download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; download it again")
    return value


def summarize(error: BaseException) -> str:
    """The first line of an error's message, and what it announces, without a final stop: what fits into a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return first.rstrip(".:")[:200]
