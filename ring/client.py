"""RingClient: the only door to a running ring. The command line, the dashboard and the HTTP gateway are clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import threading
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq
import zmq.asyncio

from ring.wire.clients import (
    DEFAULT_HEAD,
    Cancel,
    ClientMessage,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generate,
    GetStatus,
    HeadMessage,
    Lap,
    Status,
    Timings,
    Tokens,
    Watch,
    encoder,
    head_decoder,
)
from ring.wire.messages import PROTOCOL
from ring.wire.sockets import configure

CONNECT_TIMEOUT_S = 5.0
WATCH_BACKLOG = 1000
BURST = 100


class RingError(Exception):
    """A request that failed; the message is one sentence. `code` is the head's word for it, such as `busy`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class NoHead(RingError):
    """Nothing answers at the head's address, or it has stopped answering."""

    def __init__(self, message: str) -> None:
        super().__init__("no_head", message)


@dataclass(frozen=True, slots=True)
class GenerateEvent:
    """New tokens of a generation.

    `text` is what has become certain with them; a character or a possible stop string may need more tokens. The last
    event brings no tokens but the rest of the text, and it alone has `finish_reason` (`stop`, `length` or `cancelled`),
    `prompt_tokens`, the `seed` used and `timings`. `sequence` is the head's number for the generation, as in a `LapRun`.
    """

    token_ids: list[int]
    text: str
    sequence: int
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    seed: int | None = None
    timings: Timings | None = None


@dataclass(slots=True)
class Completion:
    """A whole generation, as `RingClient.complete` collects it."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 0
    seed: int = 0
    timings: Timings | None = None

    def add(self, event: GenerateEvent) -> None:
        """Take one event."""
        self.text += event.text
        self.token_ids += event.token_ids
        if event.finish_reason is not None:
            assert event.prompt_tokens is not None and event.seed is not None
            self.finish_reason, self.prompt_tokens = event.finish_reason, event.prompt_tokens
            self.seed, self.timings = event.seed, event.timings


class RingClient:
    """A connection to a ring's head.

        async with RingClient("tcp://127.0.0.1:5555") as ring:
            async for event in ring.generate("def "):
                print(event.text, end="")

    One client may have any number of generations running at once. Entering raises `NoHead` when nothing answers within
    `timeout` seconds, and `RingError` when the head speaks another protocol version.
    """

    def __init__(self, head: str = DEFAULT_HEAD, *, timeout: float = CONNECT_TIMEOUT_S) -> None:
        self.head = head
        self.timeout = timeout
        self._requests = itertools.count(1)
        self._replies: dict[int, asyncio.Queue[HeadMessage | None]] = {}
        self._socket: zmq.asyncio.Socket | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._context = zmq.asyncio.Context()
        socket = self._context.socket(zmq.DEALER)
        configure(socket)
        try:
            socket.connect(self.head)
        except zmq.ZMQError as error:
            socket.close(0)
            raise NoHead(f"'{self.head}' is not an address such as {DEFAULT_HEAD}: {error.strerror or error}") from None
        self._socket = socket
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._tasks = [asyncio.create_task(self._read(socket)), asyncio.create_task(self._notice_loss(monitor))]
        try:
            await self.status()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:  # cancelled once more or not: a context with open sockets would block whoever collects it
            self._end_waiting()
            if self._socket is not None:
                self._context.destroy(linger=200)
            self._socket, self._tasks = None, []

    async def generate(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> AsyncGenerator[GenerateEvent, None]:
        """Continue a prompt, given as text or as token ids; yields events as tokens come.

        Leaving the loop early cancels the generation on every stage.

        Args:
            max_tokens: most new tokens; also bounded by the model's context.
            temperature: 0 takes the likeliest token; otherwise logits are divided by it and a token is drawn.
            top_p: draw among the fewest likeliest tokens whose probabilities reach it.
            top_k: draw among that many likeliest tokens; 0 among all.
            seed: the same seed and request give the same tokens; None picks one.
            stop: the text ends before any of these strings.
            ignore_eos: go on past the model's end-of-sequence token.

        Raises:
            RingError: the head refused the request (`bad_request`, `too_long`, `busy`) or a stage failed.
            NoHead: the head is gone.
        """
        request = next(self._requests)
        message = Generate(
            request=request,
            prompt=prompt,
            token_ids=None if token_ids is None else list(token_ids),
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=list(stop),
            ignore_eos=ignore_eos,
        )
        ended = False
        async with contextlib.aclosing(self._ask(message)) as replies:
            try:
                async for reply in replies:
                    if isinstance(reply, Tokens):
                        yield GenerateEvent(reply.token_ids, reply.text, reply.sequence)
                    elif isinstance(reply, Finished):
                        ended = True
                        last = (reply.finish_reason, reply.prompt_tokens, reply.seed, reply.timings)
                        yield GenerateEvent([], reply.text, reply.sequence, *last)
                        return
            except RingError:
                ended = True
                raise
            finally:
                if not ended:
                    self._send(Cancel(request))

    async def complete(self, prompt: str | None = None, **options: Any) -> Completion:
        """A whole generation at once; takes what `generate` takes."""
        completion = Completion()
        async for event in self.generate(prompt, **options):
            completion.add(event)
        return completion

    async def status(self) -> Status:
        """The ring at this moment.

        Raises:
            NoHead: no answer within the client's timeout.
        """
        request = GetStatus(next(self._requests))
        async with contextlib.aclosing(self._ask(request)) as replies:
            try:
                async with asyncio.timeout(self.timeout):
                    async for reply in replies:
                        assert isinstance(reply, Status)
                        if reply.protocol != PROTOCOL:
                            raise RingError(
                                "version",
                                f"the head at {self.head} speaks protocol {reply.protocol}, this client {PROTOCOL}; "
                                "install the same version of ring on both",
                            )
                        return reply
            except TimeoutError:
                pass
        raise NoHead(f"no head answers at {self.head}; start a ring with `ring up`, or give the address with --head")

    async def traces(self) -> AsyncGenerator[Lap | Event, None]:
        """Every finished lap and every event from now on, until the loop is left. A slow reader loses laps."""
        request = next(self._requests)
        async with contextlib.aclosing(self._ask(Watch(request), maxsize=WATCH_BACKLOG)) as replies:
            try:
                async for reply in replies:
                    assert isinstance(reply, Lap | Event)
                    yield reply
            finally:
                self._send(Watch(request, on=False))

    async def _ask(self, message: ClientMessage, maxsize: int = 0) -> AsyncGenerator[HeadMessage, None]:
        """Send a request; yields its replies."""
        replies: asyncio.Queue[HeadMessage | None] = asyncio.Queue(maxsize)
        self._replies[message.request] = replies
        try:
            self._send(message)
            while True:
                reply = await replies.get()
                if isinstance(reply, Failed):
                    raise RingError(reply.code, reply.message)
                if reply is None:
                    raise NoHead(f"the head at {self.head} has gone")
                yield reply
        finally:
            del self._replies[message.request]

    def _send(self, message: ClientMessage) -> None:
        if self._socket is not None:
            self._socket.send(encoder.encode(message))

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        """Hand every reply to the request that waits for it."""
        plain: zmq.Socket[bytes] = zmq.Socket.shadow(socket)
        while True:
            self._deliver(await socket.recv_multipart())
            with contextlib.suppress(zmq.Again):  # what has come meanwhile, without a future for each
                for _ in range(BURST):
                    self._deliver(plain.recv_multipart(zmq.NOBLOCK))

    def _deliver(self, frames: list[bytes]) -> None:
        try:
            reply = head_decoder.decode(frames[0])
        except msgspec.DecodeError as error:
            reply = other_version(frames[0], error)
        waiting = self._replies.get(reply.request)
        if waiting is not None:
            with contextlib.suppress(asyncio.QueueFull):
                waiting.put_nowait(reply)

    async def _notice_loss(self, monitor: zmq.asyncio.Socket) -> None:
        """When the connection breaks, end what waits for answers: the head that returns no longer knows of it."""
        while True:
            await monitor.recv_multipart()
            self._end_waiting()

    def _end_waiting(self) -> None:
        """No answer will come any more to the requests that wait for one."""
        for waiting in self._replies.values():
            if waiting.full():
                waiting.get_nowait()  # of a slow reader of traces; that it is over must not be what gets lost
            waiting.put_nowait(None)


def other_version(frame: bytes, error: msgspec.DecodeError) -> Failed:
    """A reply that this client cannot read, as the failure of its request."""
    raw = msgspec.msgpack.decode(frame)
    request = raw.get("request", -1) if isinstance(raw, dict) else -1
    return Failed(
        request, "bad_request", f"the head's answer cannot be read ({error}); install the same version of ring on both"
    )


class SyncRingClient:
    """RingClient for programs without asyncio: the same methods, blocking, on an event loop in a thread of its own.

    with SyncRingClient() as ring:
        print(ring.complete("def ").text)
    """

    def __init__(self, head: str = DEFAULT_HEAD, *, timeout: float = CONNECT_TIMEOUT_S) -> None:
        self._client = RingClient(head, timeout=timeout)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ring-client", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._run(self._client.__aenter__())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._client.__aexit__(None, None, None))
        self._close()

    def generate(self, prompt: str | None = None, **options: Any) -> Iterator[GenerateEvent]:
        """Blocking `RingClient.generate`; leaving the loop early cancels."""
        events: queue.SimpleQueue[GenerateEvent | BaseException | None] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async with contextlib.aclosing(self._client.generate(prompt, **options)) as stream:
                    async for event in stream:
                        events.put(event)
                events.put(None)
            except BaseException as error:
                events.put(error)

        task = asyncio.run_coroutine_threadsafe(pump(), self._loop)
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            task.cancel()

    def complete(self, prompt: str | None = None, **options: Any) -> Completion:
        """Blocking `RingClient.complete`."""
        completion: Completion = self._run(self._client.complete(prompt, **options))
        return completion

    def status(self) -> Status:
        """Blocking `RingClient.status`."""
        status: Status = self._run(self._client.status())
        return status

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
