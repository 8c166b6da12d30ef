"""Attention over packed runs, plugged into transformers' attention interface under the name `ring`.

All runs of a microbatch lie end to end in one (1, T, hidden) tensor, without padding. Every linear layer sees them as
one batch; here each attends to its own slot of the KV cache: in the ring's own kernel, or piece by piece (blocks of a
prompt, single tokens after it) in torch's. Neither depends on how a sequence is divided into runs, so neither do the sums.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from ring.stage.attend import attend
from ring.stage.compiler import can_compile
from ring.stage.kv import KVCache, first_key
from ring.stage.vectors import LANES


def ring_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`query` is (1, heads, T, head size); returns (1, T, heads, value size).

    `softcap` is Gemma 2's cap of the scores, `s_aux` GPT-OSS's attention sinks, one for each head.
    """
    # StageModel put the cache there, as not every architecture passes arguments down to here.
    kv, layer_idx = cast(KVCache, module.ring_cache), cast(int, module.layer_idx)
    layer = layer_idx - kv.first_layer
    value_size = kv.value_size(layer)
    out = query.new_empty(query.shape[2], query.shape[1], value_size)
    if has_kernel(query.device, query.shape[3], value_size):
        attend_own(kv, layer, query, out, scaling, sliding_window, softcap, s_aux)
        return out[None], None
    row = 0
    for slot, start, count in ((slot, *piece) for slot, run in kv.packed for piece in run.pieces):
        first = first_key(start, sliding_window)
        k, v = slot.read(layer, first, start + count)
        q = query[:, :, row : row + count]
        mask = kv.mask(start, count, first, sliding_window) if count > 1 else None
        if softcap is not None or s_aux is not None:
            part = plain_attention(q, k, v, mask, scaling, softcap, s_aux)
        else:
            part = fused_attention(q, k, v, mask, scaling)
        out[row : row + count] = part[0].transpose(0, 1)
        row += count
    return out[None], None


def has_kernel(device: torch.device, head_size: int, value_size: int) -> bool:
    """Whether there is a kernel of our own for such heads."""
    return can_compile(device) and head_size % LANES == 0 and value_size % LANES == 0


def attend_own(
    kv: KVCache,
    layer: int,
    query: Tensor,
    out: Tensor,
    scaling: float | None,
    window: int | None,
    cap: float | None = None,
    sinks: Tensor | None = None,
) -> None:
    """The whole microbatch in one call, which writes `out`: (T, heads, value size) of the query's dtype."""
    if query.stride(3) != 1:
        query = query.contiguous()
    _, heads, rows, head_size = query.shape
    runs, (tokens, longest) = kv.runs(layer), kv.tokens(window)
    kv_heads, room = kv.packed[0][0].heads(layer), longest + LANES
    groups, items = heads // kv_heads, rows * kv_heads
    threads = torch.get_num_threads()
    scores = torch.empty((items if threads > 1 else 1) * groups * room)  # each thread touches its first item's only
    own = None if sinks is None else sinks.float().contiguous()
    scale = head_size**-0.5 if scaling is None else scaling
    kernel = attend(query.dtype, head_size, out.shape[2], groups, scale, cap, own is not None)
    kernel.call(
        runs.buffer_info()[0],
        tokens.buffer_info()[0],
        query.data_ptr(),
        query.stride(1),
        query.stride(2),
        out.data_ptr(),
        scores.data_ptr(),
        room,
        0 if own is None else own.data_ptr(),
        rows,
        kv_heads,
        items,
        threads,
    )


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Torch's own kernel; keys and values of grouped-query attention are never repeated for a single token.

    A single query sees every key, so the heads that share a KV head can stand as its queries.
    """
    if q.device.type == "cpu" and is_slow(q.dtype) and q.shape[1] == k.shape[1]:
        return fused_attention(q.float(), k.float(), v.float(), mask, scaling).to(q.dtype)
    if mask is not None:
        return scaled_dot_product_attention(q, k, v, mask, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
    heads = q.shape[1]
    grouped = q.reshape(1, k.shape[1], heads // k.shape[1], q.shape[3])
    return scaled_dot_product_attention(grouped, k, v, scale=scaling).reshape(1, heads, 1, v.shape[3])


@cache
def is_slow(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies the dtype so slowly that keys and values are better widened first.

    With grouped-query attention the kernel has whole matrices to multiply, and is not.
    """
    mkldnn = torch.ops.mkldnn
    if dtype == torch.bfloat16:
        return not mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and not mkldnn._is_mkldnn_fp16_supported()


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """The formula written out, for the score caps and sinks that the fused kernel lacks. Same shapes."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:  # a sink takes its share of the softmax and adds nothing
        scores = torch.cat([scores, sinks.reshape(1, -1, 1, 1).expand(1, -1, q.shape[2], 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return weights[..., : k.shape[2]] @ v


def register() -> None:
    """Make `ring` known to transformers. No mask is registered for it, so models build none."""
    AttentionInterface.register("ring", ring_attention)
