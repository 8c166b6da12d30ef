"""Who may use the gateway: keys from a file, and on loopback without one, only those who call it by a loopback name."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from pathlib import Path

from ring.gateway.errors import GatewayError

OPEN_PATHS = frozenset({"/health", "/ready", "/docs", "/openapi.json"})
"""Need no key: probes cannot send one, and the description is no secret."""


class KeyFileError(ValueError):
    """A key file that cannot be used; the message is one sentence."""


def read_keys(path: Path) -> list[bytes]:
    """The digests of the keys in a file: one key a line; empty lines and lines that begin with # are skipped.

    Raises:
        KeyFileError: unreadable, without a key, or with one too short to be a secret.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"the key file {path} cannot be read: {getattr(error, 'strerror', None) or 'not text'}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise KeyFileError(f"the key file {path} holds no key; write one a line, such as `openssl rand -hex 32` makes")
    if any(len(key) < 16 for key in keys):
        raise KeyFileError(f"the key file {path} holds a key of less than 16 characters; make one with `openssl rand -hex 32`")
    return [digest(key.encode()) for key in keys]


def digest(key: bytes) -> bytes:
    """Of equal length for all keys, so that a comparison tells nothing of theirs."""
    return hashlib.sha256(key).digest()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_key(keys: list[bytes], authorization: bytes) -> None:
    """Compare with every key, in constant time.

    Raises:
        GatewayError: 401, none given or not one of them.
    """
    scheme, _, given = authorization.partition(b" ")
    known = False
    offered = digest(given.strip())
    for key in keys:
        known |= hmac.compare_digest(offered, key)
    if not (known and scheme.lower() == b"bearer"):
        what = (
            "this API key is not known here" if given else "an API key is needed: send the header 'Authorization: Bearer KEY'"
        )
        raise GatewayError(401, what, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def check_host(host: bytes) -> None:
    """A web page can make its visitor's browser call this machine under the page's own name (DNS rebinding): that name is
    in the Host header, and no key protects what listens on loopback.

    Raises:
        GatewayError: 403, called by another name than a loopback one.
    """
    name = host.decode("latin-1")
    name = name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.partition(":")[0]
    if name and not is_loopback(name.lower()):
        raise GatewayError(
            403,
            f"this gateway serves localhost only, not '{name[:100]}'; give it an --api-key-file to serve other names",
            "host",
        )
