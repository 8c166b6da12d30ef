"""Prompts as text, on the pocket model: what it says is what transformers says, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from transformers import AutoTokenizer

from ring.answers import RingError
from ring.sync import SyncRingClient
from tests.e2e.harness import NodeRing
from tests.e2e.spawn import command
from tests.models import generate
from weights_tools.pocket import path as pocket_path

PROMPT = "def read(self, size):\n"


@pytest.fixture(scope="module")
def ring(pocket: Path) -> Iterator[NodeRing]:
    with NodeRing(pocket, 2, "--no-speculate") as ring:
        yield ring


@pytest.fixture(scope="module")
def expected() -> tuple[str, list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(pocket_path())
    (ids,) = generate(pocket_path(), [tokenizer(PROMPT)["input_ids"]], 40)
    return str(tokenizer.decode(ids, skip_special_tokens=True)), ids


def test_text_equals_transformers(ring: NodeRing, expected: tuple[str, list[int]]) -> None:
    text, ids = expected
    with SyncRingClient(ring.clients) as client:
        events = list(client.generate(PROMPT, max_tokens=40))
    assert "".join(event.text for event in events) == text
    assert [token for event in events for token in event.token_ids] == ids
    assert events[-1].finish_reason in ("length", "stop")
    assert len(events) > 4, "text must stream, not come at once"


def test_a_stop_string_ends_the_text_before_it(ring: NodeRing, expected: tuple[str, list[int]]) -> None:
    text, _ = expected
    stop = text[30:36]
    with SyncRingClient(ring.clients) as client:
        answer = client.complete(PROMPT, max_tokens=40, stop=[stop])
    assert answer.finish_reason == "stop"
    assert answer.text == text[: text.index(stop)]


def test_ask_streams_several_prompts_and_ends_with_the_table(ring: NodeRing, expected: tuple[str, list[int]]) -> None:
    done = command("ask", PROMPT, "import os", "--head", ring.clients, "--max-tokens", "40")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(PROMPT + expected[0] + "\nimport os")
    for words in ("time to first token", "inter-token latency", "compute/lap", "queue wait/lap", "wire/lap", "bytes/lap"):
        assert words in done.stdout


def test_ask_json_is_one_object_for_each_prompt(ring: NodeRing, expected: tuple[str, list[int]]) -> None:
    done = command("ask", PROMPT, "--token-ids", "1,2,3", "--head", ring.clients, "--max-tokens", "40", "--json")
    first, second = (msgspec.json.decode(line) for line in done.stdout.splitlines())
    assert (first["text"], first["token_ids"]) == expected
    assert first["timings"]["ttft_s"] > 0 and first["timings"]["itl_s"] > 0
    assert [stage["stage"] for stage in first["timings"]["stages"]] == [0, 1]
    assert second["prompt_tokens"] == 3


def test_a_failed_prompt_fails_the_command_but_not_the_others(ring: NodeRing) -> None:
    done = command("ask", "a " * 3000, "import os", "--head", ring.clients, "--max-tokens", "4")
    assert done.returncode == 1
    assert "context is 1024" in done.stderr
    assert "import os" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_text_of_megabytes_is_refused_by_its_length(ring: NodeRing) -> None:
    with SyncRingClient(ring.clients) as client, pytest.raises(RingError, match="do not fit this model's context") as caught:
        client.complete("a" * 4_000_000)
    assert caught.value.code == "too_long"


def test_status_command(ring: NodeRing) -> None:
    done = command("status", "--head", ring.clients, "--json")
    assert done.returncode == 0
    assert msgspec.json.decode(done.stdout)["state"] == "ready"
    assert "stage" in command("status", "--head", ring.clients).stdout


def test_no_head_is_one_sentence() -> None:
    with ThreadPoolExecutor() as at_once:
        words = (["ask", "x"], ["status"])
        results = list(at_once.map(lambda one: command(*one, "--head", "tcp://127.0.0.1:9"), words))
    for done in results:
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "no head answers" in done.stderr
