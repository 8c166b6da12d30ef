"""Makes and changes the files of a ring's keys; what they mean is in `ring.wire.keys`."""

from __future__ import annotations

import shutil
from pathlib import Path

import zmq.auth

from ring.wire.keys import ALLOWED, ME, NAME, RING, KeyFileError


def make_keys(out: Path, nodes: list[str], clients: list[str]) -> None:
    """Write one folder for each machine into `out`.

    Raises:
        KeyFileError: a name twice or not fit for a file, or a folder that is there already.
    """
    names = [*nodes, *clients]
    for name in names:
        check_name(name)
        if (out / name).exists():
            raise KeyFileError(f"{out / name} exists already; choose another folder, or remove it first")
    if len(set(names)) != len(names):
        raise KeyFileError("every machine needs a name of its own")
    for name in names:
        (out / name).mkdir(parents=True, mode=0o700)
        zmq.auth.create_certificates(out / name, ME)
    zmq.auth.create_certificates(out / nodes[0], RING)
    for name in names[1:]:
        shutil.copy2(out / nodes[0] / f"{RING}.key", out / name)
        if name in nodes:
            shutil.copy2(out / nodes[0] / f"{RING}.key_secret", out / name)
    for name in nodes:
        (out / name / ALLOWED).mkdir(mode=0o700)
        for other in names:
            shutil.copy2(out / other / f"{ME}.key", out / name / ALLOWED / f"{other}.key")
    for secret in (path for name in names for path in (out / name).glob("*.key_secret")):
        secret.chmod(0o600)


def check_name(name: str) -> None:
    """Raises KeyFileError unless a name is fit for a file."""
    if NAME.fullmatch(name) is None:
        raise KeyFileError(f"'{name}' is no name for a machine; use letters, digits, dots and dashes")


def write_public(path: Path, key: bytes) -> None:
    """Write a public key file.

    Raises:
        KeyFileError: not a key in the Z85 form.
    """
    try:
        valid = len(zmq.utils.z85.decode(key)) == 32
    except (ValueError, KeyError):
        valid = False
    if not valid:
        raise KeyFileError("a public key is 40 characters, as in the second line from the end of a .key file")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'metadata\ncurve\n    public-key = "{key.decode()}"\n')
