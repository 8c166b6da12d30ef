"""What every request passes first: who it is from, how long it took, and one line in the log."""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ring.answers import Completion
from ring.gateway.auth import OPEN_PATHS, check_host, check_key
from ring.gateway.errors import GatewayError
from ring.gateway.metrics import Metrics
from ring.gateway.write import encoder, send_json

log = logging.getLogger("ring.access")

QUIET = frozenset({"/health", "/ready", "/metrics"})
"""Asked for every few seconds by machines: logged only when they fail in an unexpected way."""

HUNG_UP = 499
"""nginx's status for a client that did not wait for the answer."""


class Front:
    """Wraps the application.

    Args:
        app: what answers.
        metrics: counts what passes.
        keys: digests of the keys that open it; none for no key.
        local_only: refuse those who call it by another name than a loopback one.
        paths: those that exist; all others are counted as one.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, keys: list[bytes], local_only: bool, paths: frozenset[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.keys = keys
        self.local_only = local_only
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        status = HUNG_UP

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.in_progress.inc()
        try:
            self._check(scope)
            await self.app(scope, receive, noting)
        except GatewayError as error:
            await send_json(noting, encoder.encode(error.body), error.status, error.headers)
        except BaseException:
            status = 500 if status == HUNG_UP else status
            raise
        finally:
            self.metrics.in_progress.dec()
            self._note(scope, status, time.monotonic() - started)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self.local_only:
            check_host(headers.get("host", "").encode("latin-1"))
        if self.keys and scope["path"] not in OPEN_PATHS:
            check_key(self.keys, headers.get("authorization", "").encode("latin-1"))

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path, failed = scope["path"], scope.get("ring.failed", "")
        answers: list[Completion] = scope.get("ring.answers", [])
        name = path if path in self.paths else "other"
        self.metrics.requests.labels(name, HUNG_UP if failed == "disconnected" else status).inc()
        self.metrics.request_seconds.labels(name).observe(seconds)
        self.metrics.answered(answers)
        if failed:
            self.metrics.failures.labels(failed).inc()
        if path in QUIET and status in (200, 503):
            return
        who = scope["client"][0] if scope.get("client") else "-"
        tokens = f" {sum(len(answer.token_ids) for answer in answers)} tokens" if answers else ""
        why = f" {failed}" if failed else ""
        log.info("%s %s %.200s %d %.3fs%s%s", who, scope["method"], printable(path), status, seconds, tokens, why)


def printable(path: str) -> str:
    """A path that cannot forge a line of the log."""
    return "".join(character if character.isprintable() else "?" for character in path)
