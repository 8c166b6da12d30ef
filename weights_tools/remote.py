"""A checkpoint on the Hugging Face Hub, or any server that lays it out like that, read in parts by HTTP range requests."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]  # documented, not in __all__

from weights_tools.folder import CheckpointError
from weights_tools.tensorfile import Fill, StoredTensor

if TYPE_CHECKING:
    from httpx2 import Response

STALL_S = 20.0
"""A connection that brings nothing for so long is given up and opened anew."""
TRIES, FIRST_TRIES = 8, 3
"""So many connections in a row that bring nothing are enough; the waits between eight add up to a minute. Before the server
has answered at all, three: a name that is wrong should be told of soon."""
WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
SMALL, BLOCK = 256 << 10, 4 << 20
"""Tensors up to `SMALL` that lie side by side are fetched together, up to `BLOCK`."""
RETRIED = {408, 425, 429, 500, 502, 503, 504}


class Broken(Exception):
    """A connection that failed in a way that may pass; `wait_s` is what the server asks for."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class Absent(Exception):
    """The server has no such file."""


@dataclass
class Repository:
    """A model's repository at one revision.

    Once the server has named the commit (the Hub does), all else is asked for at that commit, so that a push in between
    changes nothing. `received` counts the bytes of all answers. A token is sent to the configured Hub only (HF_ENDPOINT),
    not to another `endpoint`.
    """

    name: str
    revision: str = "main"
    endpoint: str | None = None
    received: int = 0
    closed: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        ours = self.endpoint is None or self.endpoint == constants.ENDPOINT
        return build_hf_headers(token=None if ours else False) | {"Accept-Encoding": "identity"}

    def url(self, file: str) -> str:
        """Where a file is."""
        return hf_hub_url(self.name, file, revision=self.revision, endpoint=self.endpoint)

    def download(self, file: str) -> bytes | None:
        """A small file, whole, checked against its hash where the Hub gives one; None if there is none.

        Raises:
            CheckpointError: it cannot be had.
        """
        remote = RemoteFile(self, file)
        try:
            data = b"".join(remote.read())
        except Absent:
            return None
        if remote.digest is not None and remote.digest not in (git_digest(data), hashlib.sha256(data).hexdigest()):
            raise CheckpointError(f"{remote} did not arrive as the Hub has it (its hash differs); try again")
        return data

    def count(self, size: int) -> None:
        """So many bytes came."""
        with self._lock:
            self.received += size


class RemoteFile:
    """A file of a repository: a `TensorFile`, if it is a safetensors one. Several threads may read it."""

    def __init__(self, repository: Repository, name: str) -> None:
        self.repository = repository
        self._name = name
        self.size: int | None = None
        self.digest: str | None = None
        self.blocks: list[Block] = []
        self.versions: dict[str, str] = {}  # by host, as the Hub's own ETag and its store's are not the same
        self._direct: str | None = None

    @property
    def name(self) -> str:
        """Within the repository."""
        return self._name

    @property
    def version(self) -> str:
        """What the server that was asked first tells versions apart by (the Hub: the whole file's sha256); empty if nothing."""
        return self.versions.get(urlsplit(self.repository.url(self._name)).hostname or "", "")

    def __str__(self) -> str:
        return f"{self.repository.name}/{self._name}"

    @contextmanager
    def stream(self, offset: int, size: int) -> Iterator[Fill]:
        """Bytes from `offset` on, from as many connections as it takes. See `TensorFile`."""
        try:
            block = next((block for block in self.blocks if block.start <= offset and offset + size <= block.end), None)
            if block is None:
                chunks = self.read(offset, offset + size)  # asks for nothing until it is read from
            else:
                chunks = (block.take(self)[offset - block.start :][:size] for _ in range(1))
            with closing(chunks):
                yield Reader(chunks, size).fill
        except Absent:
            raise CheckpointError(f"{self} is gone; it was there a moment ago") from None

    def read(self, start: int = 0, end: int | None = None) -> Generator[bytes]:
        """Bytes `start` to `end - 1`, or the whole file; what breaks off is taken up where it broke off.

        Raises:
            CheckpointError: it cannot be had, or is another file than it was.
            Absent: there is no such file.
        """
        failures = 0
        while True:
            before = start
            try:
                for chunk in self._get(start, end):
                    start += len(chunk)
                    yield chunk
                if start < (self.size or 0 if end is None else end):
                    raise Broken("it breaks off")
                return
            except Broken as error:
                failures = failures + 1 if start == before else 1
                if failures >= (TRIES if self.repository.received else FIRST_TRIES):
                    raise CheckpointError(
                        f"{self} cannot be fetched from {self.host} ({error}; {failures} times in a row); "
                        "once that is mended, run the same command again to go on from here"
                    ) from None
                wait = max(error.wait_s, min(WAIT_S * 2 ** (failures - 1), LONGEST_WAIT_S) if start == before else 0.0)
                if self.repository.closed.wait(wait):
                    raise CheckpointError(f"{self} is no longer wanted") from None

    def _get(self, start: int, end: int | None) -> Iterator[bytes]:
        """One connection's worth of it."""
        headers = self.repository.headers
        url, direct = self.repository.url(self._name), self._direct
        if direct is not None:
            url = direct
            headers.pop("authorization", None)
        if end is not None:
            headers["Range"] = f"bytes={start}-{end - 1}"
        elif start:
            headers["Range"] = f"bytes={start}-"
        try:
            with get_session().stream("GET", url, headers=headers, timeout=STALL_S) as response:
                self._check(response, start, end, direct)
                left = None if end is None else end - start
                for chunk in response.iter_raw():
                    self.repository.count(len(chunk))
                    if left is not None:
                        chunk = chunk[:left]
                        if not chunk:
                            return  # more than was asked for
                        left -= len(chunk)
                    yield chunk
        except (CheckpointError, Absent, Broken):
            raise
        except OfflineModeIsEnabled:
            raise CheckpointError("HF_HUB_OFFLINE is set, so nothing is fetched; unset it, or use `ring split`") from None
        except Exception as error:  # the Hub's client and its transport fail in many ways; all may pass
            raise Broken(summarize_failure(error)) from None

    def _check(self, response: Response, start: int, end: int | None, direct: str | None) -> None:
        """Look at the head of an answer before any of its body is read."""
        code = response.status_code
        first = response.history[0] if response.history else response
        if code in (401, 403, 404, 410) and direct is not None:
            self._direct = None  # an address that the Hub signs is good for an hour or so
            raise Broken("its address has expired")
        if code == 404:
            raise Absent
        if code in (401, 403):
            raise CheckpointError(
                f"{self.host} does not give {self} to you (HTTP {code}: {first.headers.get('x-error-code', 'no access')}); "
                "check the name, accept the model's terms if it has any, and log in with `hf auth login`"
            )
        if code == 416:
            raise CheckpointError(f"{self} is shorter than its own header says; it is damaged on {self.host}")
        if code in RETRIED:
            raise Broken(f"HTTP {code}", retry_after(response.headers.get("retry-after")))
        if code not in (200, 206):
            raise CheckpointError(f"{self.host} answers HTTP {code} for {self}")
        self._check_range(response, start, end)
        self._check_version(response, first)
        if response.history and response.url.host != first.url.host:
            self._direct = str(response.url)

    def _check_range(self, response: Response, start: int, end: int | None) -> None:
        """It is the part that was asked for, of a file of the size that it had."""
        if response.status_code == 206:
            match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("content-range", ""))
            if match is None or int(match[1]) != start:
                raise Broken("another part comes than was asked for")
            size = int(match[3])
        else:
            size = int(response.headers.get("content-length", -1))
            if start or (end is not None and not 0 <= size <= end):
                raise CheckpointError(
                    f"{self.host} sends all of {self} where a part is asked for, so a stage alone cannot be fetched from "
                    "it; download the whole model and use `ring split`, or choose another --endpoint"
                )
        if size >= 0 and size != self.size:
            if self.size is not None:
                raise self._changed()
            self.size = size

    def _check_version(self, response: Response, first: Response) -> None:
        """It is the same file as before, as far as can be told; and which commit it is of."""
        for answer in (first, response):
            version = answer.headers.get("x-linked-etag") or answer.headers.get("etag") or answer.headers.get("last-modified")
            if version and self.versions.setdefault(answer.url.host, version) != version:
                raise self._changed()
        if commit := first.headers.get("x-repo-commit"):
            self.repository.revision = commit
        digest = (first.headers.get("x-linked-etag") or first.headers.get("etag") or "").removeprefix("W/").strip('"')
        if commit and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest):
            self.digest = digest

    def _changed(self) -> CheckpointError:
        return CheckpointError(f"{self} changed while it was fetched; run the same command again to fetch the new one")

    @property
    def host(self) -> str:
        """Who is asked, for a sentence."""
        return self.repository.endpoint or constants.ENDPOINT


class Reader:
    """Fills memory from chunks of other sizes; there are `left` bytes to come."""

    def __init__(self, chunks: Iterator[bytes], left: int) -> None:
        self.chunks, self.left = chunks, left
        self.rest = memoryview(b"")

    def fill(self, view: memoryview) -> None:
        """Fill all of it."""
        while view:
            if not self.rest:
                self.rest = memoryview(next(self.chunks))
            taken = min(len(view), len(self.rest))
            view[:taken] = self.rest[:taken]
            view, self.rest, self.left = view[taken:], self.rest[taken:], self.left - taken
        if not self.left:
            next(self.chunks, None)  # to its end, so that the connection can be used again


class Block:
    """Small tensors that lie side by side, fetched when the first of them is wanted, kept until all of them have been."""

    def __init__(self, start: int, end: int, tensors: int) -> None:
        self.start, self.end, self.left = start, end, tensors
        self._data: bytes | None = None
        self._lock = threading.Lock()

    def take(self, file: RemoteFile) -> bytes:
        """All of it."""
        with self._lock:
            data = b"".join(file.read(self.start, self.end)) if self._data is None else self._data
            self.left -= 1
            self._data = data if self.left > 0 else None
            return data


def coalesce(tensors: list[StoredTensor]) -> None:
    """Have small tensors that lie side by side, and are all going to be read, fetched together."""
    previous: StoredTensor | None = None
    for tensor in sorted(tensors, key=lambda tensor: (tensor.file.name, tensor.offset)):
        if not isinstance(tensor.file, RemoteFile) or tensor.bytes > SMALL or not tensor.bytes:
            previous = None
            continue
        blocks = tensor.file.blocks
        adjacent = previous is not None and previous.file is tensor.file and previous.offset + previous.bytes == tensor.offset
        if adjacent and tensor.offset + tensor.bytes - blocks[-1].start <= BLOCK:
            blocks[-1].end += tensor.bytes
            blocks[-1].left += 1
        else:
            blocks.append(Block(tensor.offset, tensor.offset + tensor.bytes, 1))
        previous = tensor


def retry_after(header: str | None) -> float:
    """Seconds that a server asks to wait, at most a minute."""
    return min(float(header), 60.0) if header is not None and header.isdecimal() else 0.0


def git_digest(data: bytes) -> str:
    """The sha1 that git knows a file by, which is the Hub's ETag of small ones."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def summarize_failure(error: Exception) -> str:
    """What went wrong with a connection, in a few words."""
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".: ")[:160]
