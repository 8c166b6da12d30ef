"""A model in int8 says the same however it is cut, and close to what it says in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ring.stage.load import load_stage
from ring.wire.messages import Run, Sampling
from tests.models import make_checkpoint
from weights_tools.shard import ShardError
from weights_tools.split import split


def logits(checkpoint: Path, out: Path, stages: int, dtype: str) -> Tensor:
    """Of every token of a prompt, through a ring of so many stages."""
    split(str(checkpoint), out, stages=stages, dtype=dtype)
    passed = torch.randint(1, 300, (40,), generator=torch.Generator().manual_seed(1))
    for stage in range(stages):
        passed = load_stage(out / f"stage-{stage}").forward(passed, [Run(0, 0, 40, 40, Sampling(), answers=40, prompt=30)])
    return passed.float()


@pytest.mark.parametrize("name", ["gpt2", "llama-tied-yarn", "mistral"])
def test_int8(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "checkpoint", name)
    exact = logits(tmp_path / "checkpoint", tmp_path / "exact", 1, "float32")
    whole = logits(tmp_path / "checkpoint", tmp_path / "whole", 1, "int8")
    assert torch.equal(logits(tmp_path / "checkpoint", tmp_path / "cut", 3, "int8"), whole)
    assert float((whole - exact).std() / exact.std()) < 0.15
    monkeypatch.setattr("ring.stage.linear.can_compile", lambda _: False)  # as on a machine without the kernel
    plain = logits(tmp_path / "checkpoint", tmp_path / "plain", 1, "int8")
    assert float((plain - exact).std() / exact.std()) < 0.15


def test_int8_where_none_belongs(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint", "llama")
    split(str(tmp_path / "checkpoint"), tmp_path / "shards", stages=1, dtype="int8")
    stage = load_stage(tmp_path / "shards" / "stage-0")
    for name in ("model.norm.weight", "model.layers.0.self_attn.q_proj.weight"):
        with pytest.raises(ShardError, match="does not fit this model"):
            stage.fill([(name, torch.zeros(3, 5, dtype=torch.int8))])
