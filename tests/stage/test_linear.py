"""Packed linear layers give what torch's own give, a row alone as among others, and take no second copy's memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear

from ring.stage import linear
from ring.stage.linear import PackedLinear, advise, choose_pack, pack_onednn, pack_panels
from weights_tools.quantize import dequantize, quantize

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = [*range(1, 26), 40, 64, 131]
needs_kernels = pytest.mark.skipif(choose_pack(torch.float32, CPU) is not pack_panels, reason="no kernels on this machine")


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product in float64."""
    return torch_linear(x.double(), weight.double(), None if bias is None else bias.double())


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 256), (200, 96), (1, 4), (17, 30), (130, 1028)])
def test_products_are_those_of_torch(dtype: torch.dtype, outputs: int, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs).to(dtype), torch.randn(outputs).to(dtype)
    for piece in (linear.PIECE, inputs * 64 * dtype.itemsize):  # whole, and 64 rows at a time
        monkeypatch.setattr(linear, "PIECE", piece)
        packed = PackedLinear(pack_panels(weight, False), inputs, outputs, dtype)
        for packed.bias in (None, bias):
            for rows in (1, 2, 3, 8, 40):
                x = torch.randn(1, rows, inputs).to(dtype)
                y = packed(x)
                assert y.shape == (1, rows, outputs) and y.dtype == dtype
                expected = exact(x, weight, packed.bias)
                error = (y.double() - expected).abs().max() / expected.abs().max()
                assert float(error) < (2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps)


@needs_kernels
@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8])
@pytest.mark.parametrize("inputs", [512, 772])
def test_a_row_is_the_same_alone_among_others_and_on_several_threads(dtype: torch.dtype, inputs: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(300, inputs)
    kernel = pack_panels(quantize(weight) if dtype == torch.int8 else weight.to(dtype), False)
    x = torch.randn(max(ROWS), inputs)
    together = kernel(x, None)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for rows in ROWS:
                assert torch.equal(kernel(x[-rows:], None), together[-rows:]), rows
    finally:
        torch.set_num_threads(threads)


@needs_kernels
def test_only_the_weights_of_int8_are_rounded() -> None:
    torch.manual_seed(0)
    stored = quantize(torch.randn(100, 512))
    levels, scale = dequantize(stored)
    weight, bias = levels.double() * scale.double()[:, None], torch.randn(100)
    x = torch.randn(200, 512).bfloat16()
    x[:, 3] *= 1000  # an activation far from the others, as large models have
    kernel = pack_panels(stored.clone(), True)
    for given in (None, bias):
        y = kernel(x, given)
        assert y.dtype == torch.bfloat16
        assert torch.allclose(y.double(), exact(x, weight, given), rtol=2**-8, atol=1e-2)


@needs_kernels
def test_what_is_not_finite_stays_in_its_row() -> None:
    kernel = pack_panels(torch.randn(64, 64), False)
    x = torch.randn(7, 64)
    x[2, 5] = float("nan")
    good = kernel(x, None).isfinite().all(1)
    assert good.tolist() == [True, True, False, True, True, True, True]
    assert bool(pack_panels(torch.full((8, 16), 1e6, dtype=torch.bfloat16), False)(torch.ones(2, 16), None).isfinite().all())


def test_onednn_packs_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(100, 64), torch.randn(100), torch.randn(5, 64)
    monkeypatch.setattr(linear, "PIECE", 64 * 30 * 4)
    assert torch.allclose(pack_onednn(weight.clone(), False)(x, bias), torch_linear(x, weight, bias), atol=1e-5)


def test_memory_that_is_given_back_leaves_the_rest_alone() -> None:
    tensor = torch.ones(3 << 20)
    advise(tensor[1 << 20 : 2 << 20], "MADV_DONTNEED")
    assert bool((tensor[: 1 << 20] == 1).all()) and bool((tensor[2 << 20 :] == 1).all())
    assert float(tensor[1 << 20 : 2 << 20].mean()) < 0.01
