"""What a splitter reads of `plan.json`: the cut, and whose it is. The planner writes more into it, for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from weights_tools.partition import Ranges, check_ranges
from weights_tools.place import SplitError

FORMAT = 1


class PlannedRange(msgspec.Struct, frozen=True):
    """A stage's layers, `first_layer` to `end_layer - 1`."""

    first_layer: int
    end_layer: int


class PlannedCut(msgspec.Struct, frozen=True):
    """A cut for a model of these sizes in bytes, stored in `dtype`: each layer, what follows the last, what precedes the
    first. They tell models apart: a finetune of the planned model has the same, and the plan is right for it too."""

    format: int
    model: str
    model_type: str
    dtype: str
    layer_bytes: list[int]
    head_bytes: int
    embedding_bytes: int
    stages: Sequence[PlannedRange]

    @property
    def ranges(self) -> Ranges:
        """Every stage's layers."""
        return [(stage.first_layer, stage.end_layer) for stage in self.stages]


def read_cut(path: Path, dtype: str | None = None) -> PlannedCut:
    """Read a plan, which must be for `dtype` if one is given.

    Raises:
        SplitError: no plan, or one of another format or dtype.
        PartitionError: its stages do not hold every layer once.
    """
    try:
        cut = msgspec.json.decode(path.read_bytes(), type=PlannedCut)
    except OSError as error:
        raise SplitError(f"{path} cannot be read ({error.strerror}); make it with `ring plan --out`") from None
    except msgspec.DecodeError as error:
        raise SplitError(f"{path} is no plan ({error}); make it with `ring plan --out`") from None
    if dtype not in (None, cut.dtype):
        raise SplitError(f"{path} is a plan for {cut.dtype}, not for {dtype}; plan again with --dtype {dtype}")
    if cut.format != FORMAT:
        raise SplitError(f"{path} has plan format {cut.format}, this ring reads {FORMAT}; plan again")
    if not all(first < end for first, end in cut.ranges):
        raise SplitError(f"{path} has a stage without layers; plan again")
    check_ranges(cut.ranges, len(cut.layer_bytes))
    return cut


def check_same_model(cut: PlannedCut, model_type: str, layers: list[int], head: int, embedding: int) -> None:
    """Raises SplitError unless the plan is for a model of this type and these sizes."""
    planned = (cut.model_type, cut.layer_bytes, cut.head_bytes, cut.embedding_bytes)
    if planned != (model_type, layers, head, embedding):
        what = f"{cut.model} ({cut.model_type}, {len(cut.layer_bytes)} layers, {sum(cut.layer_bytes) / 1e6:,.1f} MB in them)"
        this = f"{model_type} with {len(layers)} layers, {sum(layers) / 1e6:,.1f} MB in them"
        raise SplitError(f"the plan is for {what}, and this is a {this}; plan this model")
