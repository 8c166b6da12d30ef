"""What the tests of `ring fetch` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tests.weights_tools.hub import REPO, Hub
from weights_tools.checkpoint import Checkpoint
from weights_tools.fetch import Fetched, fetch
from weights_tools.plan import Model
from weights_tools.planfile import FORMAT, PlannedCut, PlannedRange
from weights_tools.split import choose_ranges

BIG: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}


def get(hub: Hub, out: Path, stage: int, **options: Any) -> Fetched:
    return fetch(REPO, out, endpoint=hub.endpoint, stage=stage, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def own_bytes(checkpoint: Checkpoint, stages: int, stage: int) -> int:
    """Bytes of the checkpoint's tensors that a stage is made from."""
    model = Model(checkpoint, checkpoint.dtype)
    plan = model.plan_stage(choose_ranges(model, stages, None), stage)
    names = {source.name for parameter in plan.stored.values() for source in parameter.sources}
    return sum(checkpoint.tensors[name].bytes for name in names)


def planned(folder: Path, to: Path, ranges: list[tuple[int, int]], dtype: str) -> Path:
    """A plan for a checkpoint, as far as `ring split` and `ring fetch` read it."""
    checkpoint = Checkpoint(folder)
    costs = Model(checkpoint, dtype).costs()
    stages = [PlannedRange(first, end) for first, end in ranges]
    cut = PlannedCut(FORMAT, checkpoint.name, checkpoint.config.model_type, dtype, *costs, stages)
    to.write_bytes(msgspec.json.encode(cut))
    return to
