"""The kernel for tokens that attend alone gives what torch's attention gives, whatever else is in the microbatch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ring.stage import attention
from ring.stage.attention import attend_own, has_kernel, plain_attention
from ring.stage.kv import KVCache
from ring.wire.messages import Run

CPU = torch.device("cpu")
LENGTHS = [2, 15, 16, 17, 33, 170, 1000]
SHAPES = [(12, 12, 64, 64), (8, 2, 64, 64), (8, 1, 128, 128), (4, 4, 16, 16), (4, 2, 192, 128), (6, 3, 80, 80), (14, 2, 64, 64)]
"""Heads, KV heads, head size, value size."""
pytestmark = pytest.mark.skipif(not has_kernel(CPU, 16, 16), reason="no kernels on this machine")


def make_cache(dtype: torch.dtype, kv_heads: int, head_size: int, value_size: int) -> tuple[KVCache, list[Run]]:
    """A cache of one layer with a sequence of each length, all to be asked for the token after its last but one."""
    cache = KVCache(0, 1, CPU)
    cache.begin([Run(slot, 0, length, 1024, prompt=length) for slot, length in enumerate(LENGTHS)])
    total = sum(LENGTHS)
    keys, values = torch.randn(1, kv_heads, total, head_size), torch.randn(1, kv_heads, total, value_size)
    cache.update(keys.to(dtype), values.to(dtype), 0)
    cache.commit()
    return cache, [Run(slot, length - 1, 1, 1024) for slot, length in enumerate(LENGTHS)]


def ask(cache: KVCache, runs: list[Run], query: Tensor, value_size: int, window: int | None) -> Tensor:
    """What these runs' tokens attend to, by the kernel."""
    cache.begin(runs)
    out = torch.full((query.shape[2], query.shape[1], value_size), float("nan"), dtype=query.dtype)
    attend_own(cache, 0, query, out, None, window)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_size", "value_size"), SHAPES)
@pytest.mark.parametrize("window", [None, 20])
def test_attention(dtype: torch.dtype, heads: int, kv_heads: int, head_size: int, value_size: int, window: int | None) -> None:
    torch.manual_seed(0)
    cache, runs = make_cache(dtype, kv_heads, head_size, value_size)
    query = torch.randn(1, len(runs), heads, head_size).mul(3).to(dtype).transpose(1, 2)
    out = ask(cache, runs, query, value_size, window)
    for row, run in enumerate(runs):
        first = max(0, run.start + 1 - window) if window else 0
        keys, values = (part.double() for part in cache.slots[run.slot].read(0, first, run.start + 1))
        expected = scaled_dot_product_attention(query[:, :, row : row + 1].double(), keys, values, enable_gqa=True)
        assert torch.allclose(out[row].double(), expected[0, :, 0], rtol=torch.finfo(dtype).eps, atol=1e-5), run
        alone = ask(cache, [run], query[:, :, row : row + 1], value_size, window)
        assert torch.equal(alone[0], out[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 7])
def test_a_prompt_in_any_chunks(dtype: torch.dtype, window: int | None) -> None:
    """To the bit the same in one chunk, in several and token by token, beside another sequence's tokens."""
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, 2, 60, 64).to(dtype)
    query = torch.randn(1, 60, 6, 64).to(dtype).transpose(1, 2)
    found = []
    for ends in ([60], [8, 9, 41, 60], list(range(1, 61))):
        cache, parts = KVCache(0, 1, CPU), []
        for start, end in pairwise([0, *ends]):
            runs = [Run(0, start, end - start, 60, prompt=60), Run(1, start, 1, 61)]
            cache.begin(runs if start == 0 else runs[:1])
            beside = slice(start, end + (start == 0))
            cache.update(keys[:, :, beside], values[:, :, beside], 0)
            rows = query[:, :, beside]
            out = torch.empty(rows.shape[2], 6, 64, dtype=dtype)
            attend_own(cache, 0, rows, out, None, window)
            parts.append(out[: end - start])
            cache.commit()
        found.append(torch.cat(parts))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    for row in range(60):
        seen = slice(max(0, row + 1 - window) if window else 0, row + 1)
        expected = scaled_dot_product_attention(
            query[:, :, row : row + 1].double(), keys[:, :, seen].double(), values[:, :, seen].double(), enable_gqa=True
        )
        assert torch.allclose(found[0][row].double(), expected[0, :, 0], rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("cap", "with_sinks"), [(5.0, False), (None, True), (5.0, True)])
def test_caps_and_sinks(dtype: torch.dtype, cap: float | None, with_sinks: bool) -> None:
    torch.manual_seed(0)
    cache, runs = make_cache(dtype, 2, 64, 64)
    query = torch.randn(1, len(runs), 8, 64).mul(3).to(dtype).transpose(1, 2)
    sinks = torch.randn(8).mul(3).to(dtype) if with_sinks else None
    cache.begin(runs)
    out = torch.empty(len(runs), 8, 64, dtype=dtype)
    attend_own(cache, 0, query, out, None, None, cap, sinks)
    for row, run in enumerate(runs):
        q, k, v = (part.double() for part in (query[:, :, row : row + 1], *cache.slots[run.slot].read(0, 0, run.start + 1)))
        expected = plain_attention(q, k, v, None, None, cap, None if sinks is None else sinks.double())
        assert torch.allclose(out[row].double(), expected[0, :, 0], rtol=torch.finfo(dtype).eps, atol=2e-5), run


def test_several_threads_give_the_same() -> None:
    torch.manual_seed(0)
    cache, runs = make_cache(torch.float32, 2, 64, 64)
    query = torch.randn(1, 8, len(runs), 64)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(ask(cache, runs, query, 64, None))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_scores_far_apart_and_not_finite() -> None:
    cache, runs = make_cache(torch.float32, 1, 16, 16)
    query = torch.randn(1, 1, len(runs), 16) * 1e4
    out = ask(cache, runs, query, 16, None)
    assert bool(out.isfinite().all())
    query[0, 0, 3] = float("nan")
    good = ask(cache, runs, query, 16, None).isfinite().all(2).all(1)
    assert good.tolist() == [row != 3 for row in range(len(runs))]


def test_without_a_kernel_torch_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    cache, runs = make_cache(torch.float32, 2, 64, 64)
    query = torch.randn(1, 8, len(runs), 64)
    module = torch.nn.Module()
    module.ring_cache, module.layer_idx = cache, 0  # type: ignore[assignment]
    cache.begin(runs)
    ours = attention.ring_attention(module, query, query, query, None)[0]
    monkeypatch.setattr("ring.stage.attention.can_compile", lambda _: False)
    assert torch.allclose(attention.ring_attention(module, query, query, query, None)[0], ours, atol=1e-5)
