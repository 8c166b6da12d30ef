"""What is done between products gives what transformers' modules give, in models whose modules are Llama's word for word."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from ring.stage.compiler import can_compile
from ring.stage.fuse import Activated, GatedMLP, RMSNorm, fuse, rotated
from ring.stage.rows import Activation, activated, rms_norm, rotate

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SMALL: dict[str, Any] = {
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}
VOCABULARY: dict[str, Any] = {"vocab_size": 99}
pytestmark = pytest.mark.skipif(not can_compile(CPU), reason="no kernels on this machine")


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal but for a few roundings."""
    torch.testing.assert_close(ours, theirs, rtol=4 * torch.finfo(ours.dtype).eps, atol=torch.finfo(ours.dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 48, 2048])
def test_norm(dtype: torch.dtype, size: int) -> None:
    plain = LlamaRMSNorm(size, 1e-5).requires_grad_(False).to(dtype)
    plain.weight.normal_()
    x = (3 * torch.randn(1, 7, size)).to(dtype)
    close(rms_norm(x, plain.weight, 1e-5), plain(x))
    close(rms_norm(x[:, 1::2], plain.weight, 1e-5), plain(x[:, 1::2]))
    assert torch.equal(rms_norm(x[:, :1], plain.weight, 1e-5), rms_norm(x, plain.weight, 1e-5)[:, :1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "fused"), [(32, True), (64, True), (128, True), (48, False), (80, False)])
def test_rotation_is_transformers_to_the_bit(dtype: torch.dtype, size: int, fused: bool) -> None:
    q, k = (torch.randn(1, 5, heads, size).to(dtype).transpose(1, 2) for heads in (6, 2))
    cosines, sines = torch.randn(2, 1, 5, size).to(dtype)
    expected = apply_rotary_pos_emb(q, k, cosines, sines)
    turned = rotated(q, k, cosines, sines)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(turned, expected, strict=True))
    assert (turned[0] is q) == fused


def test_rotation_asks_for_one_row_of_angles_a_token() -> None:
    q, k = torch.randn(2, 3, 5, 32), torch.randn(2, 3, 5, 32)
    cosines, sines = torch.randn(2, 2, 5, 32)
    assert torch.equal(rotated(q, k, cosines, sines)[1], apply_rotary_pos_emb(q, k, cosines, sines)[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["silu", "gelu"])
def test_activation(dtype: torch.dtype, kind: Activation) -> None:
    x, gated = (8 * torch.randn(3, 1600)).to(dtype), torch.randn(3, 1600).to(dtype)
    x[0, :6] = torch.tensor([0.0, -0.0, 100.0, -100.0, float("inf"), float("nan")])
    plain = nn.functional.silu(x) if kind == "silu" else nn.functional.gelu(x, approximate="tanh")
    ours, both = activated(x, kind), activated(x, kind, gated)
    # Far below zero GELU is the difference of two numbers of about the same size: theirs is the one that has no digits left.
    loose = 1e-6 if kind == "gelu" else 1e-30
    torch.testing.assert_close(ours, plain, rtol=4 * torch.finfo(dtype).eps, atol=loose, equal_nan=True)
    torch.testing.assert_close(both, ours * gated, rtol=0, atol=0, equal_nan=True)


def test_every_thread_does_its_share() -> None:
    threads = torch.get_num_threads()
    x, weight = torch.randn(1, 5, 64), torch.randn(64)
    states, angles = torch.randn(1, 4, 5, 32), torch.randn(1, 5, 32)
    once = (rms_norm(x, weight, 1e-6), activated(x, "silu"), rotate(states.clone(), angles, angles))
    try:
        torch.set_num_threads(3)
        again = (rms_norm(x, weight, 1e-6), activated(x, "silu"), rotate(states.clone(), angles, angles))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


@pytest.mark.parametrize(
    ("model_type", "fused"),
    [
        ("llama", {RMSNorm: 3, GatedMLP: 1}),
        ("mistral", {RMSNorm: 3, GatedMLP: 1}),
        ("qwen2", {RMSNorm: 3, GatedMLP: 1}),
        ("qwen3", {RMSNorm: 5, GatedMLP: 1}),
        ("gemma2", {GatedMLP: 1}),  # its norms add one to the weight
        ("gpt2", {Activated: 1}),
    ],
)
def test_what_is_replaced(model_type: str, fused: dict[type[nn.Module], int]) -> None:
    names: dict[str, Any] = {"n_embd": 64, "n_inner": 96, "n_head": 2, "n_layer": 1} if model_type == "gpt2" else SMALL
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**names, **VOCABULARY)).eval().requires_grad_(False)
    ids = torch.randint(0, 99, (1, 9))
    before = model(ids).logits
    fuse(model, CPU)
    kinds = [type(module) for module in model.modules()]
    assert {kind: kinds.count(kind) for kind in (RMSNorm, GatedMLP, Activated) if kind in kinds} == fused
    turned = [module for module in model.modules() if vars(module).get("forward") is not None]
    assert len(turned) == (model_type != "gpt2")
    assert all(module.forward.__globals__["apply_rotary_pos_emb"] is rotated for module in turned)
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)
