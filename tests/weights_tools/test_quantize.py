"""int8 shards hold each linear weight to half a step of its row's scale, and everything else as bfloat16 does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.weights_tools.conftest import Save
from weights_tools.checkpoint import Checkpoint
from weights_tools.convert import pieces
from weights_tools.plan import Model
from weights_tools.quantize import dequantize, gather, quantize
from weights_tools.shard import WEIGHTS
from weights_tools.skeleton import find_layers, linear_weights, linearize, rename_layer
from weights_tools.split import split
from weights_tools.tensorfile import as_bytes


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31))
def test_a_weight_is_off_by_half_a_step_at_most(rows: int, columns: int, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed % 9 - 4)
    weight[0] = 0.0
    levels, scale = dequantize(quantize(weight))
    assert levels.dtype == torch.int8 and scale.dtype == torch.float32 and scale.shape == (rows,)
    assert bool(((levels * scale[:, None] - weight).abs() <= 0.501 * scale[:, None]).all())
    assert bool((levels[1:].abs().amax(1) == 127).all())


@given(st.integers(1, 20), st.integers(1, 9), st.lists(st.integers(1, 50), min_size=1))
def test_blocks_of_rows_do_not_depend_on_the_pieces(rows: int, columns: int, sizes: list[int]) -> None:
    matrix = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
    left, cut = as_bytes(matrix), list[memoryview]()
    while left:
        cut.append(left[: sizes[len(cut) % len(sizes)]])
        left = left[len(cut[-1]) :]
    assert torch.equal(torch.cat([block.clone() for block in gather(cut, columns, 64)]), matrix)


@pytest.mark.parametrize(("model_type", "tied"), [("gpt2", True), ("llama", True), ("llama", False), ("qwen3_moe", False)])
@pytest.mark.parametrize("stages", [1, 2])
def test_shards(save: Save, tmp_path: Path, model_type: str, tied: bool, stages: int) -> None:
    folder = save(model_type, file_size="30KB", tie_word_embeddings=tied)
    manifests = split(str(folder), tmp_path / "out", stages=stages, dtype="int8")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    linearize(model)
    layers_path, _ = find_layers(model)
    linear, expected = set(linear_weights(model)), model.state_dict()
    seen = set()
    for stage, manifest in enumerate(manifests):
        assert not manifest.tied, "a head in int8 is not the embedding"
        for local, stored in load_file(tmp_path / "out" / f"stage-{stage}" / WEIGHTS).items():
            name = rename_layer(local, layers_path, -manifest.first_layer)
            seen.add(name)
            if name in linear:
                assert torch.equal(stored, quantize(expected[name]))
            else:
                assert torch.equal(stored, expected[name].to(torch.bfloat16))
    assert seen == set(expected)


def test_making_a_tensor_can_be_resumed_anywhere(save: Save) -> None:
    model = Model(Checkpoint(save("gpt2")), "int8")
    for name in ("transformer.h.0.attn.c_attn.weight", "lm_head.weight"):
        parameter = model.parameters[name]
        assert parameter.quantized
        whole = b"".join(bytes(piece) for piece in pieces(parameter, model.checkpoint.tensors, model.frame))
        assert len(whole) == parameter.bytes
        for start in (1, 31, 36, 37, parameter.bytes - 1):
            rest = b"".join(bytes(piece) for piece in pieces(parameter, model.checkpoint.tensors, model.frame, start))
            assert rest == whole[start:]
