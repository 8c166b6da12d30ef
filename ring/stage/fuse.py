"""Gives transformers' modules the ring's kernels for what they write out in many of torch's: norms, rotations, activations.

Transformers repeats such code word by word from model to model, so that a module whose source is Llama's computes what
Llama's does. Others stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from types import FunctionType, MethodType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, NewGELUActivation, SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from ring.stage.compiler import can_compile
from ring.stage.rows import Activation, activated, rms_norm, rotate
from ring.stage.vectors import LANES

ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.SiLU: "silu",
    SiLUActivation: "silu",
    GELUTanh: "gelu",
    NewGELUActivation: "gelu",
}
ROTATION = apply_rotary_pos_emb.__name__


class Activated(nn.Module):
    """An activation."""

    def __init__(self, kind: Activation) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape. The way depends on its last dimension alone, as a row may not depend on others."""
        if x.shape[-1] % LANES == 0:
            return activated(x, self.kind)
        return nn.functional.silu(x) if self.kind == "silu" else nn.functional.gelu(x, approximate="tanh")


class GatedMLP(nn.Module):
    """Llama's feed-forward network, whose activation gates a second product."""

    def __init__(self, plain: LlamaMLP, kind: Activation) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = plain.gate_proj, plain.up_proj, plain.down_proj
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """(…, hidden size) -> (…, hidden size)."""
        gated: Tensor = self.down_proj(activated(self.gate_proj(x), self.kind, self.up_proj(x)))
        return gated


class RMSNorm(nn.Module):
    """Llama's norm."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(weight, requires_grad=False), epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(…, size) -> (…, size)."""
        return rms_norm(x, self.weight, self.epsilon)


def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """What Llama's `apply_rotary_pos_emb` computes. It may overwrite `q` and `k`, which are fresh products."""
    fits = all(
        states.dtype == cos.dtype and states.stride(-1) == 1 and states.shape[-1] == cos.shape[-1] and len(states) == 1
        for states in (q, k)
    )
    if unsqueeze_dim != 1 or not fits or cos.shape[-1] % (2 * LANES):
        plain: tuple[Tensor, Tensor] = apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)
        return plain
    cos, sin = cos.contiguous(), sin.contiguous()
    return rotate(q, cos, sin), rotate(k, cos, sin)


def fuse(model: nn.Module, device: torch.device) -> None:
    """Replace what there are kernels for, in a model that has its weights."""
    if not can_compile(device):
        return
    for path, module in list(model.named_modules()):
        forward = type(module).forward
        if is_llamas(forward, LlamaMLP.forward):
            kind = ACTIVATIONS.get(type(module.act_fn))
            if kind and module.gate_proj.out_features % LANES == 0:
                model.set_submodule(path, GatedMLP(module, kind))
        elif is_llamas(forward, LlamaRMSNorm.forward):
            if len(module.weight) % LANES == 0:
                model.set_submodule(path, RMSNorm(module.weight, module.variance_epsilon))
        elif uses_llamas_rotation(forward):
            module.forward = MethodType(rebind(forward, {ROTATION: rotated}), module)
    for path, module in list(model.named_modules()):
        if kind := ACTIVATIONS.get(type(module)):
            model.set_submodule(path, Activated(kind))


def uses_llamas_rotation(forward: Callable[..., Any]) -> TypeGuard[FunctionType]:
    """Whether an attention's forward rotates as Llama's does."""
    if not isinstance(forward, FunctionType) or ROTATION not in forward.__code__.co_names:
        return False
    return is_llamas(forward.__globals__[ROTATION], apply_rotary_pos_emb)


def is_llamas(function: Callable[..., Any], llamas: Callable[..., Any]) -> bool:
    """Whether a function's source is that of one of Llama's."""
    return function.__name__ == llamas.__name__ and source(function) == source(llamas)


@cache
def source(function: Callable[..., Any]) -> str | None:
    """Its text, or None if there is none."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return None


def rebind(function: FunctionType, names: dict[str, Any]) -> FunctionType:
    """The same function, for which some global names mean something else."""
    bound = FunctionType(
        function.__code__, function.__globals__ | names, function.__name__, function.__defaults__, function.__closure__
    )
    bound.__kwdefaults__ = function.__kwdefaults__
    return bound
