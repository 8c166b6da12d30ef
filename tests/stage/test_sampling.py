"""Sampling: exact for greedy, keyed by (seed, position) otherwise, and distributed as asked."""

from __future__ import annotations

import pytest
import torch

from ring.stage.sampling import draw, logprobs, sample, uniform
from ring.wire.messages import Sampling

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])


def test_temperature_zero_takes_the_likeliest() -> None:
    rows = torch.randn(6, 50)
    assert sample(rows, [Sampling()] * 6, [1] * 6) == rows.argmax(-1).tolist()


def test_the_same_key_gives_the_same_token_alone_or_among_others() -> None:
    rows = torch.randn(8, 100)
    samplings = [Sampling(1.0, 0.95, 50, seed) for seed in range(8)]
    together = sample(rows, samplings, list(range(8)))
    alone = [sample(rows[k : k + 1], [samplings[k]], [k])[0] for k in range(8)]
    assert together == alone


def test_seed_and_position_both_matter() -> None:
    assert len({uniform(seed, 5) for seed in range(100)}) == 100
    assert len({uniform(5, position) for position in range(100)}) == 100
    assert uniform(1, 2) != uniform(2, 1)
    assert all(0 <= uniform(seed, seed) < 1 for seed in range(1000))


def test_draws_follow_the_softmax() -> None:
    count = 4000
    drawn = torch.tensor([draw(LOGITS, Sampling(0.8, 1.0, 0, seed), 3) for seed in range(count)])
    frequencies = torch.bincount(drawn, minlength=5) / count
    assert torch.allclose(frequencies, torch.softmax(LOGITS / 0.8, 0), atol=0.03)


@pytest.mark.parametrize(("top_k", "allowed"), [(1, {0}), (2, {0, 1}), (99, {0, 1, 2, 3})])
def test_top_k(top_k: int, allowed: set[int]) -> None:
    assert {draw(LOGITS, Sampling(1.0, 1.0, top_k, seed), 0) for seed in range(500)} == allowed


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    first, second = torch.softmax(LOGITS, 0)[:2].tolist()
    assert {draw(LOGITS, Sampling(1.0, first - 0.01, 0, seed), 0) for seed in range(300)} == {0}
    assert {draw(LOGITS, Sampling(1.0, first + 0.01, 0, seed), 0) for seed in range(300)} == {0, 1}
    assert {draw(LOGITS, Sampling(1.0, first + second + 0.01, 0, seed), 0) for seed in range(500)} == {0, 1, 2}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_has_no_token(value: float) -> None:
    rows = torch.zeros(2, 5)
    rows[1, 3] = value
    rows[0, 4] = 1.0
    assert sample(rows, [Sampling(), Sampling(0.5)], [0, 0]) == [4, None]


def test_logprobs_are_the_log_softmax_whatever_the_sampling() -> None:
    rows = torch.randn(3, 50)
    samplings = [Sampling(1.5, 0.5, 3, 1, logprobs=4), Sampling(), Sampling(logprobs=0)]
    first, second, third = logprobs(rows, samplings, [7, 8, 9])
    expected = torch.log_softmax(rows, -1)
    values, order = expected[0].topk(4)
    assert [token for token, _ in first] == [7, *order.tolist()]
    assert torch.allclose(torch.tensor([logprob for _, logprob in first]), torch.cat([expected[0, 7:8], values]))
    assert second == []
    assert [token for token, _ in third] == [9]
    assert third[0][1] == pytest.approx(float(expected[2, 9]))


def test_nobody_asks_for_logprobs() -> None:
    assert logprobs(torch.randn(2, 50), [Sampling()] * 2, [1, 2]) == []


def test_a_row_without_a_token_has_no_logprobs() -> None:
    assert logprobs(torch.randn(2, 50), [Sampling(logprobs=1)] * 2, [None, 2])[0] == []


def test_an_impossible_token_has_a_logprob_that_json_can_carry() -> None:
    row = torch.tensor([[0.0, float("-inf")]])
    assert logprobs(row, [Sampling(logprobs=2)], [0]) == [[(0, 0.0), (0, 0.0), (1, -9999.0)]]
