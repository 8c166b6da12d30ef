"""Shards that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import make_checkpoint
from weights_tools.pocket import path as pocket_path
from weights_tools.split import split


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random llama as `checkpoint`, and its shards as `shards-1` and `shards-3`."""
    folder = tmp_path_factory.mktemp("llama")
    make_checkpoint(folder / "checkpoint")
    for stages in (1, 3):
        split(str(folder / "checkpoint"), folder / f"shards-{stages}", stages=stages)
    return folder


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket model in float32, so that it can be compared with transformers, cut into two."""
    shards = tmp_path_factory.mktemp("pocket") / "shards"
    split(str(pocket_path()), shards, stages=2, dtype="float32")
    return shards
