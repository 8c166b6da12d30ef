"""From logits to tokens, keyed by (seed, position): the same request gives the same tokens alone or among others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ring.wire.messages import LogprobRow, Sampling

LEAST = -9999.0  # stands for minus infinity, which JSON cannot carry


def sample(logits: Tensor, samplings: list[Sampling], positions: list[int]) -> list[int | None]:
    """Draw one token for each row; None for a row whose logits are not finite.

    Args:
        logits: (rows, vocabulary), any float dtype.
        samplings: one for each row.
        positions: each drawn token's own position in its sequence.
    """
    best, tokens = logits.max(dim=-1)
    finite: list[bool] = torch.isfinite(best).tolist()
    chosen: list[int | None] = tokens.tolist()
    for row, (sampling, position) in enumerate(zip(samplings, positions, strict=True)):
        if not finite[row]:
            chosen[row] = None
        elif sampling.temperature > 0:
            chosen[row] = draw(logits[row].float(), sampling, position)
    return chosen


def logprobs(logits: Tensor, samplings: list[Sampling], tokens: Sequence[int | None]) -> list[LogprobRow]:
    """Log-probabilities as the model gives them: before temperature, top-k and top-p.

    Args:
        logits: (rows, vocabulary), any float dtype.
        samplings: one for each row.
        tokens: the token drawn for each row, or None.

    Returns:
        A row for each token, as in `Sampled`; nothing at all if no sampling asks for any.
    """
    wanted = [row for row, sampling in enumerate(samplings) if sampling.logprobs is not None]
    found: list[LogprobRow] = [[] for _ in samplings] if wanted else []
    for row in wanted:
        token = tokens[row]
        if token is None:
            continue
        every = torch.log_softmax(logits[row].float(), dim=-1).clamp_min(LEAST)
        values, order = torch.topk(every, min(samplings[row].logprobs or 0, len(every)))
        found[row] = [(token, float(every[token])), *zip(order.tolist(), values.tolist(), strict=True)]
    return found


def draw(logits: Tensor, sampling: Sampling, position: int) -> int:
    """Temperature, then top-k, then top-p (the order of transformers), then one draw from what is left.

    Args:
        logits: (vocabulary,), float32.
    """
    scaled = logits / sampling.temperature
    keep = min(sampling.top_k, len(scaled)) if sampling.top_k else len(scaled)
    values, order = torch.topk(scaled, keep) if keep < len(scaled) else torch.sort(scaled, descending=True, stable=True)
    cumulative = torch.softmax(values, dim=-1, dtype=torch.float64).cumsum(-1)
    # Top-p keeps the fewest tokens that reach it: those whose predecessors have not reached it yet.
    kept = int((cumulative < sampling.top_p).sum()) + 1 if sampling.top_p < 1 else keep
    kept = min(kept, keep)
    point = uniform(sampling.seed, position) * float(cumulative[kept - 1])
    return int(order[min(int((cumulative[:kept] <= point).sum()), kept - 1)])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on seed and position only: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    mask = (1 << 64) - 1
    state = (splitmix64(seed & mask) + position) & mask
    return (splitmix64(state) >> 11) / (1 << 53)


def splitmix64(state: int) -> int:
    """One step of SplitMix64: mixes 64 bits into 64 others."""
    mask = (1 << 64) - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)
