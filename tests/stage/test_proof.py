"""The proof of a cut: what a ring can compute passes, what it cannot is refused with a reason, whatever its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from ring.stage.compiler import can_compile
from ring.stage.kv import KVCache
from ring.stage.model import StageModel
from ring.stage.proof import prove
from ring.wire.messages import Run
from weights_tools.skeleton import Unservable

SERVED: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2, "num_hidden_layers": 4},
    "qwen3": {},
    "mistral": {"sliding_window": 4096},
    "mixtral": {},
    "qwen3_moe": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "gpt_neox": {},
    "gpt_oss": {},
    "phi3": {"pad_token_id": 0},
    "olmo2": {},
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.2},
    "starcoder2": {},
    "cohere2": {},
    "opt": {},
}


@pytest.mark.parametrize("model_type", SERVED)
def test_what_a_ring_computes_exactly_passes(model_type: str) -> None:
    prove(CONFIG_MAPPING[model_type](**SERVED[model_type]))


def test_a_recurrent_layer_among_attention_layers_is_refused() -> None:
    mixed: dict[str, Any] = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "full_attention"]}
    with pytest.raises(Unservable):
        prove(CONFIG_MAPPING["lfm2"](**mixed))


def without_window(seen: Callable[..., Any]) -> Callable[..., Any]:
    """Faults what says which positions a token sees: its last argument is the window."""
    return lambda self, *args: seen(self, *args[:-1], None)


def one_position_off(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def shifted(self: StageModel, inputs: Tensor, runs: list[Run]) -> Tensor:
        return forward(self, inputs.roll(1, 0) if self.manifest.is_first else inputs, runs)

    return shifted


@pytest.mark.parametrize(
    ("model_type", "owner", "name", "fault"),
    [
        ("mistral", KVCache, "tokens" if can_compile(torch.device("cpu")) else "mask", without_window),
        ("gpt2", StageModel, "forward", one_position_off),
    ],
)
def test_the_proof_can_fail(
    monkeypatch: pytest.MonkeyPatch, model_type: str, owner: type, name: str, fault: Callable[..., Any]
) -> None:
    monkeypatch.setattr(owner, name, fault(getattr(owner, name)))
    with pytest.raises(Unservable, match="gives other logits"):
        prove(CONFIG_MAPPING[model_type](**SERVED[model_type]))


def test_the_proof_leaves_torch_as_it_was() -> None:
    before = (torch.get_num_threads(), torch.get_default_dtype())
    prove(CONFIG_MAPPING["gpt2"]())
    assert (torch.get_num_threads(), torch.get_default_dtype()) == before
