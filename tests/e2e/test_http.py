"""A real ring behind a real gateway, used as people will use it: curl, OpenAI's own package, schemathesis."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from openai import AsyncOpenAI, OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from ring.sync import SyncRingClient
from ring.wire.clients import Message
from tests.e2e.harness import NodeRing
from tests.e2e.http_server import HttpServer, chat_shards, idle
from tests.models import generate
from weights_tools.pocket import path as pocket_path

PROMPT = "def read(self, size):\n"
CURL = """curl -X POST http://localhost:8000/generate -H 'Content-Type: application/json' -d '{"prompt": "Hello world!"}'"""


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeRing]:
    with NodeRing(chat_shards(tmp_path_factory.mktemp("chat")), 2) as ring:
        yield ring


@pytest.fixture(scope="module")
def server(ring: NodeRing) -> Iterator[HttpServer]:
    with HttpServer(ring) as server:
        yield server
        assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def client(server: HttpServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: OpenAI) -> str:
    (only,) = client.models.list().data
    assert client.models.retrieve(only.id).id == only.id
    return only.id


def test_that_curl_word_for_word(ring: NodeRing, server: HttpServer) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free = probe.connect_ex(("127.0.0.1", 8000)) != 0
    command = CURL if free else CURL.replace(":8000", f":{server.port}")
    if not free or shutil.which("curl") is None:
        answer = httpx2.post(f"{server.url}/generate", json={"prompt": "Hello world!"}).json()
    else:
        with HttpServer(ring, port=8000):
            answer = json.loads(subprocess.run(command, shell=True, capture_output=True, check=True).stdout)
    with SyncRingClient(ring.clients) as direct:
        expected = direct.complete("Hello world!")
    assert answer["output"] == expected.text
    assert answer["elapsed_ms"] > 0
    assert (answer["prompt_tokens"], answer["completion_tokens"]) == (expected.prompt_tokens, 128)


def test_completion(client: OpenAI, model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pocket_path())
    ids = tokenizer(PROMPT)["input_ids"]
    (expected,) = generate(pocket_path(), [ids], 24)
    text = str(tokenizer.decode(expected, skip_special_tokens=True))
    for prompt in (PROMPT, ids):
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=24, temperature=0)
        assert answer.choices[0].text == text
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 24)
    echoed = client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0, echo=True)
    assert echoed.choices[0].text == PROMPT + text
    stopped = client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0, stop=text[10:14])
    assert stopped.choices[0].text == text[: text.index(text[10:14])]
    assert stopped.choices[0].finish_reason == "stop"


def test_completion_streams(client: OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0)
    chunks = list(
        client.completions.create(
            model=model, prompt=PROMPT, max_tokens=24, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    *parts, last = chunks
    assert "".join(choice.text for chunk in parts for choice in chunk.choices) == whole.choices[0].text
    assert len(parts) > 4, "it must stream, not come at once"
    assert last.choices == [] and last.usage == whole.usage
    assert parts[-1].choices[0].finish_reason == "length"
    assert len({chunk.id for chunk in chunks}) == 1


def test_n_seed_and_several_prompts(client: OpenAI, model: str) -> None:
    options: dict[str, Any] = {"model": model, "max_tokens": 12, "seed": 11}
    one = client.completions.create(prompt=[PROMPT, "import "], n=3, **options)
    again = client.completions.create(prompt=[PROMPT, "import "], n=3, **options)
    texts = [choice.text for choice in one.choices]
    assert texts == [choice.text for choice in again.choices]
    assert [choice.index for choice in one.choices] == list(range(6))
    assert len(set(texts)) > 3, "each choice is drawn with a seed of its own"
    second = client.completions.create(prompt=PROMPT, **(options | {"seed": 12}))
    assert second.choices[0].text == texts[1]
    assert one.usage is not None and one.usage.completion_tokens == 72
    streamed = ["" for _ in texts]
    for chunk in client.completions.create(prompt=[PROMPT, "import "], n=3, stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == texts


def test_logprobs_equal_transformers(client: OpenAI, model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pocket_path())
    whole = AutoModelForCausalLM.from_pretrained(pocket_path(), dtype=torch.float32).eval()
    ids = tokenizer(PROMPT)["input_ids"]
    (new,) = generate(pocket_path(), [ids], 8)
    with torch.inference_mode():
        truth = torch.log_softmax(whole(torch.tensor([ids + new])).logits[0, len(ids) - 1 : -1], -1)
    expected = [float(row[token]) for row, token in zip(truth, new, strict=True)]
    best = truth.topk(3)
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0, logprobs=3)
    told = answer.choices[0].logprobs
    assert told is not None and told.token_logprobs == pytest.approx(expected, abs=1e-3)
    assert told.tokens == [tokenizer.decode([token]) for token in new]
    assert "".join(told.tokens or []) == answer.choices[0].text
    assert told.top_logprobs is not None
    for row, values, order in zip(told.top_logprobs, best.values, best.indices, strict=True):
        assert list(row) == [tokenizer.decode([token]) for token in order.tolist()]
        assert list(row.values()) == pytest.approx(values.tolist(), abs=1e-3)


def test_chat(ring: NodeRing, client: OpenAI, model: str) -> None:
    messages: Any = [{"role": "system", "content": "short"}, {"role": "user", "content": [{"type": "text", "text": "read"}]}]
    with SyncRingClient(ring.clients) as direct:
        rendered = direct.complete("# system: short\n# user: read\ndef ", max_tokens=20)
        turns = [Message("system", "short"), Message("user", "read")]
        assert direct.complete(messages=turns, max_tokens=20).text == rendered.text
    options: dict[str, Any] = {"model": model, "messages": messages, "max_completion_tokens": 20, "temperature": 0}
    answer = client.chat.completions.create(logprobs=True, top_logprobs=2, **options)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", rendered.text)
    assert answer.usage is not None and answer.usage.prompt_tokens == rendered.prompt_tokens
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert bytes(byte for token in choice.logprobs.content for byte in token.bytes or []).decode() == rendered.text
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    again: Any = [*messages, choice.message, {"role": "user", "content": "more"}]
    assert client.chat.completions.create(**(options | {"messages": again})).choices[0].message.content

    first, *chunks = client.chat.completions.create(stream=True, **options)
    assert first.choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == rendered.text
    assert chunks[-1].choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match="Invalid enum value 'wizard'"):
        client.chat.completions.create(**(options | {"messages": [{"role": "wizard", "content": "x"}]}))


def test_a_model_without_a_chat_template_says_so(pocket: Path) -> None:
    with NodeRing(pocket, 2) as ring, HttpServer(ring) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="has no chat template") as caught:
            client.chat.completions.create(model=client.models.list().data[0].id, messages=[{"role": "user", "content": "x"}])
        assert caught.value.code == "invalid_value"


def test_errors_are_openai_s(client: OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-5", prompt="x")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="context is 1024") as long:
        client.completions.create(model=model, prompt="a " * 3000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model=model, prompt="x", frequency_penalty=0.5)
    assert (wrong.value.param, wrong.value.code) == ("frequency_penalty", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError, match="outside the vocabulary"):
        list(client.completions.create(model=model, prompt=[5000], stream=True))


def test_async_streams_at_once(server: HttpServer, model: str) -> None:
    async def run() -> None:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(index: int) -> str:
                stream = await client.completions.create(
                    model=model, prompt=f"def f{index}(", max_tokens=16, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            together = await asyncio.gather(*(one(index) for index in range(12)))
            assert together == [await one(index) for index in range(12)]

    asyncio.run(run())


def test_leaving_a_stream_early_frees_every_stage(ring: NodeRing, server: HttpServer, client: OpenAI, model: str) -> None:
    stream = client.completions.create(model=model, prompt=PROMPT, max_tokens=900, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    asyncio.run(idle(ring.clients))
    told = re.findall(r"POST /v1/completions 200 [\d.]+s (\d+) tokens disconnected", server.log())
    assert len(told) == 1 and int(told[0]) < 900


def test_keys(ring: NodeRing, model: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-long-enough-secret\n")
    with HttpServer(ring, "--host", "0.0.0.0", "--api-key-file", str(keys)) as server:
        with pytest.raises(openai.AuthenticationError) as caught:
            OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).completions.create(model=model, prompt="x")
        assert caught.value.code == "invalid_api_key"
        allowed = OpenAI(base_url=f"{server.url}/v1", api_key="a-long-enough-secret", max_retries=0)
        assert allowed.completions.create(model=model, prompt="x", max_tokens=2).choices
        assert "secret" not in server.log()


@pytest.mark.parametrize("phase", ["fuzzing", pytest.param("coverage", marks=pytest.mark.slow)])
def test_schemathesis_finds_nothing(ring: NodeRing, phase: str) -> None:
    with HttpServer(ring, "--max-tokens", "2", "--max-requests", "12") as server:
        program = str(Path(sys.executable).parent / "schemathesis")
        command = [program, "run", f"{server.url}/openapi.json", "--phases", phase, "--max-examples", "20"]
        command += ["--generation-database", "none", "--no-color", "--no-shrink"]
        # Not everything that has the right shape can be done: an empty prompt, a token id outside the vocabulary.
        command += ["--exclude-checks", "positive_data_acceptance"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=server.log_file.parent)
        assert done.returncode == 0, done.stdout[-6000:]
        assert "9 selected / 9 total" in done.stdout
        assert "Traceback" not in server.log()
    asyncio.run(idle(ring.clients))
