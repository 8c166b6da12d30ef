"""What docs/models.md claims: each architecture's greedy tokens, in 1 and 3 stages, are those of transformers' generate()."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING

from ring.stage.load import load_stage
from ring.stage.model import StageModel
from ring.stage.proof import prove
from ring.verify import verify_ring
from ring.wire.messages import Run, Sampling
from tests.models import MODELS, MORE, REFUSED, generate, make_checkpoint, ragged_prompts
from weights_tools.skeleton import Unservable
from weights_tools.split import split

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
NEW_TOKENS = 10
PROMPTS = ragged_prompts(4, longest=45)


def continue_greedily(ring: list[StageModel], prompts: list[list[int]], count: int) -> list[list[int]]:
    """All prompts in one packed batch: first in two chunks each, then token by token."""
    ids = [list(prompt) for prompt in prompts]
    starts = [0] * len(ids)

    def step(ends: list[int]) -> torch.Tensor:
        runs = [
            Run(slot, start, end - start, len(prompts[slot]) + count, Sampling())
            for slot, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
        passed = torch.cat([torch.tensor(ids[run.slot][run.start : run.start + run.count]) for run in runs])
        for stage in ring:
            passed = stage.forward(passed, runs)
        starts[:] = ends
        return passed

    with torch.inference_mode():
        if min(map(len, ids)) > 1:
            step([len(prompt) // 2 for prompt in prompts])
        for _ in range(count):
            for sequence, row in zip(ids, step([len(sequence) for sequence in ids]), strict=True):
                sequence.append(int(row.argmax()))
    return [sequence[len(prompt) :] for sequence, prompt in zip(ids, prompts, strict=True)]


@pytest.mark.parametrize("name", MODELS | MORE)
def test_greedy_tokens_equal_generate(name: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint", name)
    expected = generate(tmp_path / "checkpoint", PROMPTS, NEW_TOKENS)
    assert len({token for answer in expected for token in answer}) > 3, "answers must vary to prove anything"
    for stages in (1, 3):
        split(str(tmp_path / "checkpoint"), tmp_path / str(stages), stages=stages)
        ring = [load_stage(tmp_path / str(stages) / f"stage-{stage}") for stage in range(stages)]
        assert continue_greedily(ring, PROMPTS, NEW_TOKENS) == expected
    assert verify_ring([tmp_path / "3"], str(tmp_path / "checkpoint")).difference is None


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_a_ring_cannot_do_is_refused(model_type: str) -> None:
    with pytest.raises(Unservable, match=REFUSED[model_type]) as refusal:
        prove(CONFIG_MAPPING[model_type]())
    assert "\n" not in str(refusal.value)


def rows(heading: str) -> list[str]:
    """What stands in the first column of the table under a heading of the page."""
    section = PAGE.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_the_page_says_what_is_tested() -> None:
    """Neither more nor less."""
    assert rows("Served") == list(MODELS | MORE)
    assert rows("Refused") == list(REFUSED)
