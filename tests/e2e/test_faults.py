"""A sequence whose numbers overflow fails with the cause, and none of those that share its microbatches."""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from ring.answers import RingError
from ring.client import RingClient
from tests.e2e.harness import NodeRing
from tests.e2e.test_kill import at_rest, until
from tests.models import generate, make_checkpoint, ragged_prompts
from weights_tools.split import split


def poison(checkpoint: Path, token: int) -> None:
    """Make a token's embedding no number."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        embedding = model.get_input_embeddings()
        assert isinstance(embedding, torch.nn.Embedding)
        embedding.weight[token] = float("nan")
    model.save_pretrained(checkpoint)


def test_only_the_poisoned_sequences_fail(tmp_path: Path) -> None:
    healthy = ragged_prompts(6, longest=60, seed=4)
    make_checkpoint(tmp_path / "checkpoint", tie_word_embeddings=False)
    expected = generate(tmp_path / "checkpoint", healthy, 60)
    poisonous = next(token for token in range(300) if not any(token in text for text in [*healthy, *expected]))
    poison(tmp_path / "checkpoint", poisonous)
    split(str(tmp_path / "checkpoint"), tmp_path / "shards", stages=3)

    async def fail(client: RingClient) -> RingError | None:
        try:
            await client.complete(token_ids=[poisonous, *healthy[0]], max_tokens=5)
        except RingError as error:
            return error
        return None

    async def run(ring: NodeRing) -> None:
        async with RingClient(ring.clients) as client:
            streams = [asyncio.create_task(client.complete(token_ids=prompt, max_tokens=60)) for prompt in healthy]
            for _ in range(5):
                error = await fail(client)
                assert error is not None and error.code == "stage_failed"
                assert "the logits are not finite" in str(error)
            assert [(await stream).token_ids for stream in streams] == expected
            await until(ring, at_rest)

    with NodeRing(tmp_path / "shards", 3, "--token-budget", "32") as ring:
        asyncio.run(asyncio.wait_for(run(ring), 60))
