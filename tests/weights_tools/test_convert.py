from __future__ import annotations

import pytest
import torch
from transformers.core_model_loading import Concatenate, ConversionOps, MergeModulelist, Transpose, WeightConverter

from tests.weights_tools.conftest import Save
from weights_tools.checkpoint import Checkpoint
from weights_tools.convert import convert, groups, held, pieces
from weights_tools.plan import Model
from weights_tools.sources import Parameter, Source


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_experts_one_by_one_equal_the_whole(save: Save, model_type: str) -> None:
    checkpoint = Checkpoint(save(model_type))
    model = Model(checkpoint, "float32")
    merged = [parameter for parameter in model.parameters.values() if parameter.converter is not None]
    assert merged
    for parameter in merged:
        whole = convert(parameter, parameter.sources, checkpoint.tensors, model.frame)
        made = b"".join(bytes(piece) for piece in pieces(parameter, checkpoint.tensors, model.frame))
        assert made == whole.numpy().tobytes()
        assert len(groups(parameter)) == 4
        assert held(parameter, checkpoint.tensors) == 2 * parameter.bytes // 4


@pytest.mark.parametrize(
    "operations",
    [[Concatenate(dim=1)], [MergeModulelist(dim=1)], [MergeModulelist(dim=0), Concatenate(dim=0)],
     [MergeModulelist(dim=0), Concatenate(dim=-3)], [MergeModulelist(dim=0), Transpose(0, 1)]],
)  # fmt: skip
def test_anything_else_is_converted_whole(operations: list[ConversionOps]) -> None:
    sources = [Source(f"{kind}.{k}", kind) for kind in ("up", "gate") for k in range(2)]
    converter = WeightConverter(["up", "gate"], "both", operations=operations)
    parameter = Parameter("both", (2, 3, 4), torch.float32, sources, converter)
    assert groups(parameter) == [sources]
