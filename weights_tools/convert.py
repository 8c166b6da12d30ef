"""Makes a parameter's stored bytes from the tensors of the checkpoint, a piece at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import Concatenate, MergeModulelist

from weights_tools.folder import CheckpointError
from weights_tools.quantize import gather, quantize, unquantized
from weights_tools.sources import Parameter, Source
from weights_tools.tensorfile import StoredTensor, as_bytes, read_tensor

PIECE = 1 << 20  # small enough to be read, hashed and written while it is in a core's own cache

Stored = dict[str, StoredTensor]


def pieces(parameter: Parameter, stored: Stored, frame: PreTrainedModel, start: int = 0) -> Iterator[memoryview]:
    """A parameter's bytes as a shard holds them, in order. A piece is valid until the next is asked for.

    Args:
        parameter: what to make.
        stored: the checkpoint's tensors.
        frame: the model, as a converter wants to see it.
        start: leave out so many bytes (whole elements), and read as little for them as can be.

    Raises:
        CheckpointError: a file became shorter, or the tensors do not make the parameter.
    """
    if start >= parameter.bytes:
        return
    if parameter.quantized:
        plain, row = unquantized(parameter), start // parameter.shape[1]
        whole = pieces(plain, stored, frame, row * plain.shape[1] * plain.dtype.itemsize)
        blocks = gather(whole, plain.shape[1], PIECE)
        yield from without(start % parameter.shape[1], (as_bytes(quantize(rows)) for rows in blocks))
    elif parameter.converter is not None:
        parts = groups(parameter)
        size = parameter.bytes // len(parts)
        for group in parts[start // size :]:
            yield from cut(convert(parameter, group, stored, frame).to(parameter.dtype), start % size)
            start = 0
    elif parameter.transposed:
        yield from without(start, transpose(read_tensor(stored[parameter.sources[0].name]), parameter.dtype))
    else:
        yield from copied(stored[parameter.sources[0].name], parameter.dtype, start)


def held(parameter: Parameter, stored: Stored) -> int:
    """Bytes of memory that making a parameter takes, pieces aside."""
    if parameter.converter is not None:
        return 2 * max(sum(stored[source.name].bytes for source in group) for group in groups(parameter))
    return stored[parameter.sources[0].name].bytes if parameter.transposed else 0


def copied(stored: StoredTensor, dtype: torch.dtype, start: int = 0) -> Iterator[memoryview]:
    """A tensor as it is stored, or in another dtype, without the first `start` bytes of the result."""
    source: torch.dtype = getattr(torch, stored.dtype)
    buffer = torch.empty(PIECE, dtype=torch.uint8)
    view = as_bytes(buffer)
    first = start // dtype.itemsize * source.itemsize
    with stored.stream(first) as fill:
        for at in range(first, stored.bytes, PIECE):
            size = min(PIECE, stored.bytes - at)
            fill(view[:size])
            yield view[:size] if source == dtype else as_bytes(buffer[:size].view(source).to(dtype))


def transpose(whole: Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """A matrix turned. All of it is needed for that, but it is turned in strips."""
    rows, columns = whole.shape
    strip = max(1, PIECE // (rows * dtype.itemsize))
    for first in range(0, columns, strip):
        # A dense strip first: torch turns those several times as fast as a view of a wider matrix.
        yield from cut(whole[:, first : first + strip].contiguous().to(dtype).t().contiguous())


def without(size: int, made: Iterator[memoryview]) -> Iterator[memoryview]:
    """What comes after the first `size` bytes."""
    for piece in made:
        if size < len(piece):
            yield piece[size:]
        size = max(0, size - len(piece))


def cut(tensor: Tensor, first: int = 0) -> Iterator[memoryview]:
    """A tensor's bytes in pieces, from `first` on."""
    view = as_bytes(tensor.contiguous())[first:]
    for start in range(0, len(view), PIECE):
        yield view[start : start + PIECE]


def groups(parameter: Parameter) -> list[list[Source]]:
    """The sources in groups that can be converted one after another, the results end to end being the parameter.

    Merging a list of experts along dimension 0 makes such a list, one group an expert, if what follows stays within an
    expert. That is taken as given only for the operations known here; anything else is one group, converted whole.
    """
    assert parameter.converter is not None
    first, *others = parameter.converter.operations
    one_by_one = (
        type(first) is MergeModulelist
        and first.dim == 0
        and len(parameter.converter.target_patterns) == 1
        and all(type(other) is Concatenate and other.dim % len(parameter.shape) != 0 for other in others)
    )
    lists: dict[str, list[Source]] = {}
    for source in parameter.sources:
        lists.setdefault(source.pattern, []).append(source)
    if not one_by_one or any(len(each) != parameter.shape[0] for each in lists.values()):
        return [parameter.sources]
    return [list(group) for group in zip(*lists.values(), strict=True)]


def convert(parameter: Parameter, group: list[Source], stored: Stored, frame: PreTrainedModel) -> Tensor:
    """What transformers makes from a group of tensors: the parameter, or its part of one index of dimension 0."""
    assert parameter.converter is not None
    converter = copy.deepcopy(parameter.converter)
    first = parameter.name
    for pattern in parameter.converter.target_patterns[1:]:
        first = first.replace(pattern, parameter.converter.target_patterns[0])
    for source in group:
        tensor = read_tensor(stored[source.name])
        converter.add_tensor(first, source.name, source.pattern, cast(Any, tensor))
        del tensor  # the converter lets go of each as soon as it is merged
    made = converter.convert(first, model=frame, config=frame.config)[parameter.name]
    result: Tensor = made[0] if isinstance(made, list) else made
    expected = parameter.shape if group is parameter.sources else (1, *parameter.shape[1:])
    if tuple(result.shape) != expected:
        raise CheckpointError(f"'{parameter.name}' came out as {tuple(result.shape)} instead of {expected}")
    return result
