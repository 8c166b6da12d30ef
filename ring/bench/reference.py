"""transformers' `generate()` on the same work, in a process of its own, as what a ring is compared with."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ring.bench.load import Round


class Reference:
    """A process that holds the whole model and answers rounds; idle in between."""

    def __init__(self, checkpoint: Path, dtype: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, checkpoint, dtype, threads), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def run(self, prompts: list[list[int]], new_tokens: int) -> Round:
        """One batched `generate()`, greedily, all prompts of the same length."""
        self._pipe.send((prompts, new_tokens))
        times, tokens = self._pipe.recv()
        return Round([times] * len(prompts), tokens)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.join()


def serve(pipe: Connection, checkpoint: Path, dtype: str, threads: int) -> None:
    """What the process does: answer rounds until it is ended."""
    import torch
    from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

    from weights_tools.skeleton import hush_transformers

    class Stamp(StoppingCriteria):
        """Never stops; notes when each token was there."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    hush_transformers()
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
    while True:
        prompts, new_tokens = pipe.recv()
        ids, stamp = torch.tensor(prompts), Stamp()
        started = time.perf_counter()
        with torch.inference_mode():
            whole = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([stamp]),
            )
        pipe.send(([at - started for at in stamp.times], whole[:, ids.shape[1] :].tolist()))
