"""Who may talk to a ring: CURVE keys (libzmq's encryption) and the list of those that are let in.

A ring has one key pair of its own, which every node serves with, so that whoever connects knows one public key. Every
machine has another, which it connects with. Nodes let in only public keys that lie in their folder `allowed/`; they
look there at every connection, so a key that is put there or taken away counts from the next one on. The folder:

  ring.key           the ring's public key
  ring.key_secret    its secret key; nodes only
  me.key_secret      this machine's own pair
  allowed/NAME.key   the public keys of all that may connect; nodes only

The files are pyzmq's certificates. Secret ones are readable by their owner only.
"""

from __future__ import annotations

import contextlib
import logging
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

RING, ME, ALLOWED = "ring", "me", "allowed"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Pair = tuple[bytes, bytes | None]


class KeyFileError(ValueError):
    """Keys that cannot be used; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one machine. `ring_secret` is None on a client's."""

    folder: Path
    ring_public: bytes
    ring_secret: bytes | None
    my_public: bytes
    my_secret: bytes

    def serve(self, socket: zmq.Socket[Any]) -> None:
        """Make a socket that is about to be bound encrypt, and let in only those that `authenticated` knows.

        Raises:
            KeyFileError: these are a client's keys.
        """
        if self.ring_secret is None:
            raise KeyFileError(f"{self.folder} holds a client's keys; a node needs one that `ring keys new --node` made")
        socket.curve_publickey, socket.curve_secretkey = self.ring_public, self.ring_secret
        socket.curve_server = True

    def connect(self, socket: zmq.Socket[Any]) -> None:
        """Make a socket that is about to be connected encrypt, and talk to no one but this ring."""
        socket.curve_serverkey = self.ring_public
        socket.curve_publickey, socket.curve_secretkey = self.my_public, self.my_secret

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a public key is on the list; libzmq's question at every connection."""
        known = key in allowed_keys(self.folder).values()  # both in the Z85 form of the files
        if not known:
            logging.getLogger("ring").warning("a connection with a key that is not in %s was refused", self.folder / ALLOWED)
        return known


def load_keys(folder: Path) -> Keys:
    """A machine's keys.

    Raises:
        KeyFileError: a file is missing, no key file, or a secret that others can read.
    """
    ring_public, _ = read_pair(folder / f"{RING}.key")
    secret = folder / f"{RING}.key_secret"
    _, ring_secret = read_pair(secret) if secret.exists() else (b"", None)
    my_public, my_secret = read_pair(folder / f"{ME}.key_secret")
    if my_secret is None:
        raise KeyFileError(f"{folder / ME}.key_secret holds no secret key; make new keys with `ring keys new`")
    return Keys(folder, ring_public, ring_secret, my_public, my_secret)


def read_pair(path: Path) -> Pair:
    """The public and, if it is there, the secret key of a file.

    Raises:
        KeyFileError: as `load_keys`.
    """
    try:
        mode = path.stat().st_mode
        public, secret = zmq.auth.load_certificate(path)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read ({error.strerror}); make keys with `ring keys new`") from None
    except ValueError:
        raise KeyFileError(f"{path} is no key file; make keys with `ring keys new`") from None
    if secret is not None and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyFileError(f"{path} can be read by others; run `chmod 600 {path}`")
    return public, secret


def allowed_keys(folder: Path) -> dict[str, bytes]:
    """The public keys that are let in, by name; files that hold none are passed over."""
    found = {}
    for path in sorted((folder / ALLOWED).glob("*.key")):
        with contextlib.suppress(KeyFileError):
            found[path.stem] = read_pair(path)[0]
    return found


@contextlib.contextmanager
def authenticated(context: zmq.Context[zmq.Socket[bytes]], keys: Keys | None) -> Iterator[None]:
    """While this lasts, connections to the context's CURVE sockets are held against the list of `keys`."""
    if keys is None:
        yield
        return
    authenticator = ThreadAuthenticator(context, log=logging.getLogger("ring.zap"))
    authenticator.start()
    authenticator.configure_curve_callback(domain="*", credentials_provider=keys)
    try:
        yield
    finally:
        authenticator.stop()
