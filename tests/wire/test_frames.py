"""Everything that arrives is checked: what is no message is refused, and nothing else ever happens."""

from __future__ import annotations

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ring.wire.frames import WireError, decode, encode
from ring.wire.messages import Fault, Forward, Hello, Hop, Pulse, Release, RingMessage, Run, Sampled, Sampling

FORWARD = Forward(7, 3, [Run(0, 0, 2, 8), Run(1, 5, 1, 9, Sampling(0.5, 0.9, 40, 11))], "float32", [3, 4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_forward_comes_back_as_it_was(dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 4).to(dtype)
    message = Forward(7, 3, FORWARD.runs, str(dtype).removeprefix("torch."), [3, 4], [Hop(0, 1, 2, 3, 4, 5)])  # type: ignore[arg-type]
    arrived = decode(encode(message, tensor), received=12)
    assert arrived.message == message
    assert arrived.received == 12
    assert arrived.tensor is not None
    assert torch.equal(arrived.tensor, tensor)


@pytest.mark.parametrize(
    "message",
    [
        Hello(1, 5, "f" * 32),
        Sampled(1, 2, [3, 4], [Hop(0, 1, 2, 3, 4, 5)]),
        Release(1, [4, 5]),
        Fault(1, 2, 0, "out of memory", [Run(0, 0, 2, 8)]),
        Pulse(1),
    ],
)
def test_other_messages_come_back(message: RingMessage) -> None:
    assert decode(encode(message), 0).message == message


def test_the_tensor_is_a_view_on_both_sides() -> None:
    tensor = torch.arange(12, dtype=torch.float32).view(3, 4)
    frames = encode(FORWARD, tensor)
    tensor[0, 0] = 99
    arrived = decode(frames, 0)
    assert arrived.tensor is not None
    assert arrived.tensor[0, 0] == 99


def change(message: Forward, **fields: object) -> bytes:
    raw = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    return msgspec.msgpack.encode(raw | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": [3, 5]},
        {"shape": [3]},
        {"shape": []},
        {"shape": [-3, -4]},
        {"shape": [1 << 19, 1 << 19]},
        {"shape": [3, 4, 1]},
        {"dtype": "float64"},
        {"dtype": "object"},
        {"dtype": "bfloat16"},
        {"runs": []},
        {"runs": [[0, 0, 4, 8, None]]},
        {"runs": [[0, 0, 2, 8, None], [1, 5, 0, 9, None], [2, 0, 1, 1, None]]},
        {"runs": [[0, -1, 3, 8, None]]},
        {"runs": [[0, 0, 3, 8, [0.5, 2.0, 0, 0]]]},
        {"epoch": -1},
        {"epoch": "7"},
        {"surprise": 1},
        {"type": "backward"},
    ],
)
def test_a_header_that_does_not_hold_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(WireError):
        decode([change(FORWARD, **fields), bytes(48)], 0)


def test_the_wrong_number_of_frames_is_refused() -> None:
    header, data = encode(FORWARD, torch.zeros(3, 4))
    for frames in ([], [header], [header, data, data], [header, bytes(47)], [*encode(Pulse(1)), b""]):
        with pytest.raises(WireError):
            decode(frames, 0)


def test_a_hello_of_another_version_is_named() -> None:
    raw = {"type": "hello", "protocol": 99, "epoch": 5, "whatever": {"is": "new"}}
    arrived = decode([msgspec.msgpack.encode(raw)], 0)
    assert isinstance(arrived.message, Hello)
    assert arrived.message.protocol == 99


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_random_bytes_are_refused_and_nothing_else(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode(frames, 0)


@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 400))
def test_a_damaged_message_is_refused_or_valid(at: int, value: int, cut: int) -> None:
    header = bytearray(encode(FORWARD, torch.zeros(3, 4))[0])
    header[at % len(header)] = value
    damaged = bytes(header[: len(header) - cut % 3])
    try:
        arrived = decode([damaged, bytes(48)], 0)
    except WireError:
        return
    assert isinstance(arrived.message, Forward)
    assert arrived.tensor is not None
    assert arrived.tensor.shape[0] == sum(run.count for run in arrived.message.runs)
