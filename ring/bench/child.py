"""What a measured node's process does; imported by the process that all of them are forked from."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass

from transformers import AutoConfig, AutoModelForCausalLM  # noqa: F401  # imported once, for all nodes
from transformers.models.gpt2 import modeling_gpt2  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401

import ring.cli
import ring.start


@dataclass(frozen=True, slots=True)
class Emulation:
    """A stage that takes `step_ms`, or `token_ms` for each token if that is longer, behind a link of `delay_ms`.

    What it generates repeats after `period` tokens.
    """

    step_ms: float
    token_ms: float
    delay_ms: float
    period: int | None


def run(arguments: list[str], log: str, emulation: Emulation | None, core: int | None, slow: float) -> None:
    """Run the `ring` command, its output going to `log`."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bench's, which then stops the nodes
    if core is not None:
        os.sched_setaffinity(0, {core})
    if emulation is not None:
        from ring.bench.emulate import install

        install(emulation.step_ms / 1000, emulation.token_ms / 1000, emulation.delay_ms / 1000, emulation.period)
    if slow > 1:
        from ring.bench.emulate import slow_down

        slow_down(slow)
    sys.argv = ["ring", *arguments]
    ring.cli.app()
