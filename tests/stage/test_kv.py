"""The KV cache takes runs that fit what it holds, and nothing else."""

from __future__ import annotations

import pytest
import torch

from ring.stage.kv import KVCache, RunError
from ring.wire.messages import Run


def write(cache: KVCache, runs: list[Run]) -> None:
    """A forward pass whose keys are the tokens' positions."""
    cache.begin(runs)
    positions = torch.cat([torch.arange(run.start, run.start + run.count) for run in runs]).float()
    states = positions.view(1, 1, -1, 1).expand(1, 2, -1, 4)
    for layer in range(3, 5):
        cache.update(states, -states, layer)
    cache.commit()


@pytest.fixture(params=[True, False], ids=["kernel", "torch"])
def cache(request: pytest.FixtureRequest) -> KVCache:
    cache = KVCache(first_layer=3, layers=2, device=torch.device("cpu"))
    cache.compiled = cache.compiled and request.param
    return cache


def test_runs_of_several_slots_land_in_their_own(cache: KVCache) -> None:
    write(cache, [Run(0, 0, 3, 8), Run(5, 0, 2, 4)])
    write(cache, [Run(5, 2, 1, 4), Run(0, 3, 2, 8)])
    for slot, length in ((0, 5), (5, 3)):
        keys, values = cache.slots[slot].read(1, 0, length)
        assert keys.shape == (1, 2, length, 4)
        assert keys[0, 0, :, 0].tolist() == list(range(length))
        assert torch.equal(values, -keys)
    assert cache.reserved == 12
    assert cache.token_bytes == 2 * 2 * 2 * 4 * 4  # layers, keys and values, heads, head size, float32


@pytest.mark.parametrize(
    "runs",
    [
        [Run(9, 1, 1, 8)],  # never opened
        [Run(0, 4, 1, 8)],  # leaves a gap
        [Run(0, 3, 6, 8)],  # past its reserve
        [Run(0, 3, 6, 9)],  # claims a larger reserve than it was opened with
        [Run(0, 3, 1, 8), Run(0, 4, 1, 8)],  # twice
    ],
)
def test_impossible_runs_are_refused_and_change_nothing(cache: KVCache, runs: list[Run]) -> None:
    write(cache, [Run(0, 0, 3, 8)])
    with pytest.raises(RunError):
        cache.begin([Run(1, 0, 1, 4), *runs])
    assert set(cache.slots) == {0}
    assert cache.slots[0].length == 3


def test_a_run_at_the_start_opens_the_slot_anew_and_one_further_back_overwrites(cache: KVCache) -> None:
    write(cache, [Run(0, 0, 5, 8)])
    write(cache, [Run(0, 3, 1, 8)])
    assert cache.slots[0].length == 4
    write(cache, [Run(0, 0, 1, 2)])
    assert (cache.slots[0].length, cache.slots[0].reserve) == (1, 2)


def test_release_frees_and_ignores_what_is_unknown(cache: KVCache) -> None:
    write(cache, [Run(0, 0, 3, 8), Run(1, 0, 3, 8)])
    cache.release([1, 1, 77])
    assert set(cache.slots) == {0}


def test_the_mask_is_causal_and_windowed(cache: KVCache) -> None:
    assert cache.mask(4, 2, 0, None).int().tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    assert cache.mask(4, 2, 2, 3).int().tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_stores_what_torch_does(dtype: torch.dtype) -> None:
    """Keys and values of different sizes, as slices of wider rows, and with their last dimension strided too."""
    torch.manual_seed(0)
    runs = [Run(0, 0, 3, 8), Run(5, 0, 1, 4), Run(2, 0, 40, 50)]
    caches = [KVCache(0, 2, torch.device("cpu")) for _ in range(2)]
    caches[1].compiled = False
    rows = torch.randn(1, 44, 3, 40).to(dtype)
    states = [rows[..., :24].transpose(1, 2), rows[..., 24:].transpose(1, 2)]
    strided = [torch.randn(1, 3, size, 44).to(dtype).transpose(2, 3) for size in (24, 16)]
    for cache in caches:
        cache.begin(runs)
        for layer, (keys, values) in enumerate((states, strided)):
            cache.update(keys, values, layer)
        cache.commit()
    for run in runs:
        for layer in range(2):
            ours, theirs = (cache.slots[run.slot].read(layer, 0, run.count) for cache in caches)
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
