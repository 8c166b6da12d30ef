"""Log-probabilities over real processes are transformers' own, computed on the whole model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ring.answers import Completion
from ring.client import RingClient
from tests.e2e.harness import NodeRing

PROMPT = list(range(5, 40))


def test_logprobs_equal_transformers(llama: Path) -> None:
    async def ask(clients: str) -> tuple[Completion, Completion, Completion]:
        async with RingClient(clients) as ring:
            return await asyncio.gather(
                ring.complete(token_ids=PROMPT, max_tokens=12, logprobs=5),
                ring.complete(token_ids=PROMPT, max_tokens=12),
                ring.complete(token_ids=PROMPT, max_tokens=12, logprobs=0, temperature=1.0, seed=3),
            )

    with NodeRing(llama / "shards-3", 3) as ring:
        greedy, plain, drawn = asyncio.run(ask(ring.clients))
    assert plain.token_ids == greedy.token_ids and plain.logprobs == []
    model = AutoModelForCausalLM.from_pretrained(llama / "checkpoint", dtype=torch.float32).eval()
    for answer, alternatives in ((greedy, 5), (drawn, 0)):
        with torch.inference_mode():
            logits = model(torch.tensor([PROMPT + answer.token_ids])).logits[0, len(PROMPT) - 1 : -1]
        expected = torch.log_softmax(logits, -1)
        assert len(answer.logprobs) == 12
        for token, row, truth in zip(answer.token_ids, answer.logprobs, expected, strict=True):
            assert row[0].token_id == token
            assert row[0].logprob == pytest.approx(float(truth[token]), abs=1e-4)
            values, order = truth.topk(alternatives)
            assert [entry.token_id for entry in row[1:]] == order.tolist()
            assert [entry.logprob for entry in row[1:]] == pytest.approx(values.tolist(), abs=1e-4)
