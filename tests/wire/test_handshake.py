"""What a client learns from a handshake that fails."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import zmq

from ring.keyring import make_keys
from ring.launch import free_ports
from ring.wire.handshake import Handshakes
from ring.wire.keys import authenticated, load_keys
from ring.wire.sockets import bind, configure

PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`alpha` and `laptop` of one ring, `mallory` of another, and `half`, which knows only our ring's public key."""
    folder = tmp_path_factory.mktemp("keys")
    make_keys(folder, ["alpha"], ["laptop"])
    make_keys(folder, ["mallory"], [])
    shutil.copytree(folder / "mallory", folder / "half")
    shutil.copy2(folder / "alpha" / "ring.key", folder / "half" / "ring.key")
    (folder / "half" / "ring.key_secret").unlink()
    return folder


@pytest.mark.parametrize(
    ("head", "client", "words"),
    [
        ("alpha", None, "asks for keys; give --keys"),
        ("alpha", "mallory", "they are another ring's"),
        ("alpha", "half", "`ring keys allow`"),
        (None, "laptop", "uses no keys"),
        ("alpha", "laptop", None),
        (None, None, None),
    ],
)
def test_keys_that_do_not_fit_are_told_apart(keys: Path, head: str | None, client: str | None, words: str | None) -> None:
    served, mine = (load_keys(keys / name) if name else None for name in (head, client))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    ours: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with authenticated(context, served):
        address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
        router = bind(context, zmq.ROUTER, address, served)
        dealer = ours.socket(zmq.DEALER)
        configure(dealer)
        if mine is not None:
            mine.connect(dealer)
        handshakes = Handshakes(dealer, address, mine)
        dealer.connect(address)
        dealer.send(b"hello")
        deadline = time.monotonic() + PATIENCE_S
        lost = False
        while not lost and not router.poll(0) and time.monotonic() < deadline:
            handshakes.monitor.poll(100)
            lost = handshakes.look()
        assert lost == (words is not None)
        assert words is None if handshakes.refusal is None else words is not None and words in handshakes.refusal
        if words is None:
            router.recv_multipart()
            router.close(0)
            while not lost and time.monotonic() < deadline:
                handshakes.monitor.poll(100)
                lost = handshakes.look()
            assert lost and handshakes.refusal is None, "a head that ends is lost, and refuses nothing"
        else:
            router.close(0)
        ours.destroy(linger=0)
    context.destroy(linger=0)
