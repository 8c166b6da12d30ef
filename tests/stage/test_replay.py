"""After a loss of every KV cache sequences go on with the same tokens, as they do in any company. `make replay` does this on
thousands of prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from ring.stage.load import load_stage
from ring.wire.messages import Sampling
from tests.models import make_checkpoint
from tests.replay import GREEDY, SAMPLED, count_changed
from weights_tools.split import split


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "mistral"])
def test_a_replay_changes_no_answer(tmp_path: Path, name: str, dtype: str, sampling: Sampling) -> None:
    make_checkpoint(tmp_path / "checkpoint", name)
    split(str(tmp_path / "checkpoint"), tmp_path / "shards", stages=1, dtype=dtype)
    assert count_changed(load_stage(tmp_path / "shards" / "stage-0"), 16, sampling) == 0
