"""Packed linear layers give what torch's own give, a row alone as among others, and take no second copy's memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ring.stage import linear
from ring.stage.linear import PackedLinear, choose_pack, give_back, has_int8, pack_fbgemm, pack_int8
from weights_tools.quantize import dequantize, quantize

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_torch(dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = choose_pack(dtype, CPU)
    if pack is None:
        pytest.skip("this machine packs nothing")
    torch.manual_seed(0)
    plain = nn.Linear(96, 200, bias=bias)
    for piece in (linear.PIECE, 96 * 64 * dtype.itemsize):  # whole, and in four pieces
        monkeypatch.setattr(linear, "PIECE", piece)
        packed = PackedLinear(plain.weight.detach().to(dtype), pack, consume=False)
        packed.bias = nn.Parameter(plain.bias.detach().to(dtype)) if bias else None
        for rows in (1, 2, 5, 40):
            x = torch.randn(1, rows, 96, dtype=dtype)
            expected = plain.to(dtype)(x)
            assert packed(x).shape == expected.shape and packed(x).dtype == dtype
            assert torch.allclose(packed(x).float(), expected.float(), atol=1e-5 if dtype == torch.float32 else 2e-2)
        plain = plain.float()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_alone_and_among_others(dtype: torch.dtype) -> None:
    pack = choose_pack(dtype, CPU)
    if pack is None:
        pytest.skip("this machine packs nothing")
    torch.manual_seed(0)
    packed = PackedLinear(torch.randn(256, 512).to(dtype), pack, consume=False)
    x = torch.randn(300, 512).to(dtype)
    together = packed(x)
    for rows in (*range(1, 130), 151, 170, 200, 247):
        assert torch.equal(packed(x[:rows]), together[:rows]), rows


def test_only_the_weights_of_int8_are_rounded_to_8_bits() -> None:
    if not has_int8():
        pytest.skip("this machine has no int8 product")
    torch.manual_seed(0)
    stored = quantize(torch.randn(100, 512))
    x = torch.randn(200, 512)
    x[:, 3] *= 20  # an activation far from the others, as large models have
    x[7] = 0.0
    weight, scale = dequantize(stored)
    exact = x.double() @ (weight.double() * scale.double()[:, None]).t()
    packed = PackedLinear(stored.clone(), pack_int8, consume=False, dtype=torch.float32)
    y = packed(x)
    rounded = (x.bfloat16().double() @ (weight.double() * scale.double()[:, None]).t() - exact).norm()
    assert float((y.double() - exact).norm()) < float(rounded), "closer than bfloat16 activations would be"
    for rows in (1, 2, 3, 7, 16, 33, 128):
        assert torch.equal(packed(x[:rows]), y[:rows])
    assert packed(x[:2].bfloat16()).dtype == torch.bfloat16


def test_weights_beyond_float16_stay_as_they_are() -> None:
    weight = torch.full((8, 16), 1e6, dtype=torch.bfloat16)
    kernel = pack_fbgemm(weight)
    assert torch.isfinite(kernel(torch.ones(2, 16, dtype=torch.bfloat16), None)).all()


def test_memory_that_is_given_back_leaves_the_rest_alone() -> None:
    tensor = torch.ones(3 << 20)
    give_back(tensor[1 << 20 : 2 << 20])
    assert bool((tensor[: 1 << 20] == 1).all()) and bool((tensor[2 << 20 :] == 1).all())
    assert float(tensor[1 << 20 : 2 << 20].mean()) < 0.01
