"""The heart of the suite: a ring's greedy tokens are those of transformers' generate() on the same weights."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from transformers import GPT2Config

from ring.client import RingClient
from ring.sync import SyncRingClient
from tests.e2e.harness import NodeRing
from tests.models import MODELS, generate, make_checkpoint, ragged_prompts
from weights_tools.split import split
from weights_tools.tiny import random_model

NEW_TOKENS = 24
PROMPTS = ragged_prompts(16, longest=150)  # the first is longer than a prefill chunk


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    folder = tmp_path_factory.mktemp(request.param)
    make_checkpoint(folder / "checkpoint", request.param)
    return folder / "checkpoint", generate(folder / "checkpoint", PROMPTS, NEW_TOKENS)


async def ask_all(clients: str, prompts: list[list[int]], max_tokens: int = NEW_TOKENS) -> list[list[int]]:
    async with RingClient(clients) as ring:
        answers = [ring.complete(token_ids=prompt, max_tokens=max_tokens) for prompt in prompts]
        return [completion.token_ids for completion in await asyncio.gather(*answers)]


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_tokens_equal_generate(checkpoint: tuple[Path, list[list[int]]], stages: int, tmp_path: Path) -> None:
    folder, expected = checkpoint
    assert len({tuple(answer) for answer in expected}) > 12, "the prompts must lead to different answers to prove anything"
    split(str(folder), tmp_path / "shards", stages=stages)
    with NodeRing(tmp_path / "shards", stages) as ring:
        alone = asyncio.run(ask_all(ring.clients, PROMPTS[:1])) + asyncio.run(ask_all(ring.clients, PROMPTS[7:8]))
        assert alone == [expected[0], expected[7]]
        assert asyncio.run(ask_all(ring.clients, PROMPTS)) == expected
        status = asyncio.run(ring.wait_for("ready"))
        assert (status.running, status.waiting, status.kv_used) == (0, 0, 0)


def test_gpt2_small_at_its_real_shape(tmp_path: Path) -> None:
    """124 million parameters over two nodes; one prompt is longer than a prefill chunk."""
    config = GPT2Config(bos_token_id=None, eos_token_id=None)
    random_model(config).save_pretrained(tmp_path / "checkpoint")
    prompts = ragged_prompts(4, longest=200, vocabulary=config.vocab_size)
    expected = generate(tmp_path / "checkpoint", prompts, 12)
    split(str(tmp_path / "checkpoint"), tmp_path / "shards", stages=2)
    with NodeRing(tmp_path / "shards", 2) as ring:
        assert asyncio.run(ask_all(ring.clients, prompts, 12)) == expected


def test_the_end_of_sequence_token_ends_it_unless_ignored(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "endless")
    prompt = PROMPTS[3]
    (endless,) = generate(tmp_path / "endless", [prompt], NEW_TOKENS)
    end = endless[10]
    make_checkpoint(tmp_path / "checkpoint", eos_token_id=end)
    (expected,) = generate(tmp_path / "checkpoint", [prompt], NEW_TOKENS)
    assert expected == endless[: endless.index(end) + 1]
    split(str(tmp_path / "checkpoint"), tmp_path / "shards", stages=2)
    with NodeRing(tmp_path / "shards", 2) as ring, SyncRingClient(ring.clients) as client:
        answer = client.complete(token_ids=prompt, max_tokens=NEW_TOKENS)
        assert (answer.token_ids, answer.finish_reason) == (expected, "stop")
        answer = client.complete(token_ids=prompt, max_tokens=NEW_TOKENS, ignore_eos=True)
        assert (answer.token_ids, answer.finish_reason) == (endless, "length")
