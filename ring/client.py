"""RingClient: the only door to a running ring. The command line, the dashboard and the HTTP gateway are clients of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

from ring.answers import Completion, GenerateEvent, NoHead, RingError, WrongKeys
from ring.wire.clients import (
    DEFAULT_HEAD,
    Cancel,
    ClientMessage,
    Drain,
    Event,
    Failed,
    Finished,
    Generate,
    GetStatus,
    HeadMessage,
    Lap,
    Message,
    Notice,
    Status,
    Tokens,
    Watch,
    encoder,
    head_decoder,
)
from ring.wire.handshake import Handshakes
from ring.wire.keys import load_keys
from ring.wire.messages import PROTOCOL
from ring.wire.sockets import configure, is_exposed

CLOSED = "this client is closed"
CONNECT_TIMEOUT_S = 5.0
RECOVERY_TIMEOUT_S = 60.0
PROBE_S = 0.5
PAUSE_S = 0.02  # between probes that fail at once
WATCH_BACKLOG = 1000
AT_ONCE = 256


class RingClient:
    """A connection to a ring's head.

        async with RingClient("tcp://127.0.0.1:5555") as ring:
            async for event in ring.generate("def "):
                print(event.text, end="")

    One client may have any number of generations running at once. Entering raises `NoHead` when nothing answers within
    `timeout` seconds, `WrongKeys` when it is the keys that do not fit, and `RingError` when the head speaks another
    protocol version. When the head is lost later, the
    client reconnects, and its generations go on from the tokens that it holds, with the tokens that they would have had;
    only after `recovery_timeout` seconds without a head do they end, with `NoHead`.

    `keys` is the folder of this machine's keys (see `ring keys`), for a head that asks for them. Without keys, a head
    that is not on this machine is refused with `RingError`, unless `insecure`. With `coalesce`, tokens that came while the
    caller was busy are one event; without, every token is one of its own. With `gather`, what arrives is looked at so many
    seconds after it came at most, all of it at once: who only looks on then has much less to do.
    """

    def __init__(
        self,
        head: str = DEFAULT_HEAD,
        *,
        timeout: float = CONNECT_TIMEOUT_S,
        recovery_timeout: float = RECOVERY_TIMEOUT_S,
        keys: Path | str | None = None,
        insecure: bool = False,
        coalesce: bool = True,
        gather: float = 0.0,
    ) -> None:
        self.head = head
        self.timeout = timeout
        self.recovery_timeout = recovery_timeout
        self.keys = load_keys(Path(keys)) if keys else None
        self.insecure = insecure
        self.coalesce = coalesce
        self.gather = gather
        self._requests = itertools.count(1)
        self._replies: dict[int, asyncio.Queue[HeadMessage | None]] = {}
        self._socket: zmq.Socket[bytes] | None = None
        self._resting = False

    async def __aenter__(self) -> Self:
        if is_exposed(self.head) and self.keys is None and not self.insecure:
            why = f"{self.head} is on another machine, and without keys anyone can read along; give --keys or --insecure"
            raise RingError("insecure", why)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = self._context.socket(zmq.DEALER)
        configure(socket)
        if self.keys is not None:
            self.keys.connect(socket)
        socket.sndhwm = 0  # what is asked while the head is away waits here
        self._handshakes = Handshakes(socket, self.head, self.keys)
        try:
            socket.connect(self.head)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise NoHead(f"'{self.head}' is not an address such as {DEFAULT_HEAD}: {error.strerror or error}") from None
        self._socket = socket
        loop = asyncio.get_running_loop()
        loop.add_reader(int(socket.fd), self._receive)
        loop.add_reader(int(self._handshakes.monitor.fd), self._notice_loss)
        self._notice_loss()  # its file descriptor says nothing before it has been looked at once
        try:
            await self.status()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_waiting()
        if self._socket is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(int(self._socket.fd))
            loop.remove_reader(int(self._handshakes.monitor.fd))
            self._context.destroy(linger=200)
        self._socket = None

    async def generate(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Sequence[Message] | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        logprobs: int | None = None,
    ) -> AsyncGenerator[GenerateEvent, None]:
        """Continue a prompt, given as text, as token ids or as the messages of a chat; yields events as tokens come.

        Tokens that came while the caller was busy are one event.

        Leaving the loop early cancels the generation on every stage.

        Args:
            messages: rendered by the model's own chat template; refused where it has none.
            max_tokens: most new tokens; also bounded by the model's context and the ring's KV cache.
            temperature: 0 takes the likeliest token; otherwise logits are divided by it and a token is drawn.
            top_p: draw among the fewest likeliest tokens whose probabilities reach it.
            top_k: draw among that many likeliest tokens; 0 among all.
            seed: the same seed and request give the same tokens; None picks one.
            stop: the text ends before any of these strings.
            ignore_eos: go on past the model's end-of-sequence token.
            logprobs: each token's log-probability, and those of this many likeliest tokens.

        Raises:
            RingError: the head refused the request (`bad_request`, `too_long`, `busy`) or a stage failed.
            NoHead: the head is gone.
        """
        message = Generate(
            request=0,
            prompt=prompt,
            token_ids=None if token_ids is None else list(token_ids),
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=secrets.randbits(53) if seed is None else seed,
            stop=list(stop),
            ignore_eos=ignore_eos,
            messages=None if messages is None else list(messages),
            logprobs=logprobs,
        )
        while True:
            try:
                async with contextlib.aclosing(self._generate_once(message)) as events:
                    async for event in events:
                        message.generated += event.token_ids
                        yield event
                return
            except NoHead as loss:
                yield GenerateEvent([], "", 0, notice=f"{loss}; waiting for it to return")
                await self.recovered()

    async def _generate_once(self, message: Generate) -> AsyncGenerator[GenerateEvent, None]:
        """Ask for a generation, or for the rest of it; cancels it unless it ends by itself."""
        message.request = next(self._requests)
        ended = False
        async with contextlib.aclosing(self._ask(message)) as replies:
            try:
                async for reply in replies:
                    if isinstance(reply, Tokens):
                        yield GenerateEvent(reply.token_ids, reply.text, reply.sequence, logprobs=reply.logprobs)
                    elif isinstance(reply, Notice):
                        yield GenerateEvent([], "", 0, notice=reply.message)
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
                    with contextlib.suppress(NoHead):
                        self._send(Cancel(message.request))

    async def recovered(self) -> None:
        """Wait until a head answers again.

        Raises:
            NoHead: none did within `recovery_timeout` seconds.
        """
        deadline = time.monotonic() + self.recovery_timeout
        while True:
            if self._socket is None:
                raise NoHead(CLOSED)
            try:
                await self._get_status(PROBE_S)
                return
            except NoHead as error:
                if time.monotonic() > deadline:
                    raise NoHead(f"the head at {self.head} has not returned for {self.recovery_timeout:.0f} s") from error
                await asyncio.sleep(PAUSE_S)

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
        return await self._get_status(self.timeout)

    async def drain(self, on: bool = True) -> Status:
        """Have the head take no more requests and let running ones finish; or, with `on` false, take them again.

        Raises:
            NoHead: no answer within the client's timeout.
        """
        return await self._get_status(self.timeout, Drain(next(self._requests), on))

    async def _get_status(self, patience: float, request: GetStatus | Drain | None = None) -> Status:
        message = request or GetStatus(next(self._requests))
        async with contextlib.aclosing(self._ask(message)) as replies:
            try:
                async with asyncio.timeout(patience):
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
        if self._handshakes.refusal is not None:
            raise WrongKeys(self._handshakes.refusal)
        raise NoHead(f"no head answers at {self.head}; start a ring with `ring up`, or give the address with --head")

    async def traces(self) -> AsyncGenerator[Lap | Event, None]:
        """Every finished lap and every event from now on, until the loop is left. A slow reader loses laps.

        Raises:
            NoHead: the head is gone; `recovered` waits for its return, and this can be called again.
        """
        request = next(self._requests)
        async with contextlib.aclosing(self._ask(Watch(request), maxsize=WATCH_BACKLOG)) as replies:
            try:
                async for reply in replies:
                    assert isinstance(reply, Lap | Event)
                    yield reply
            finally:
                with contextlib.suppress(NoHead):
                    self._send(Watch(request, on=False))

    async def _ask(self, message: ClientMessage, maxsize: int = 0) -> AsyncGenerator[HeadMessage, None]:
        """Send a request; yields its replies."""
        if self._socket is None:  # no answer would ever come
            raise NoHead(CLOSED)
        replies: asyncio.Queue[HeadMessage | None] = asyncio.Queue(maxsize)
        self._replies[message.request] = replies
        try:
            self._send(message)
            while True:
                batch = [await replies.get()]
                while not replies.empty():
                    batch.append(replies.get_nowait())
                for reply in merge_tokens(batch) if self.coalesce else batch:
                    if isinstance(reply, Failed):
                        raise RingError(reply.code, reply.message)
                    if reply is None:
                        raise self._loss()
                    yield reply
        finally:
            del self._replies[message.request]

    def _loss(self) -> NoHead:
        """Why no answer will come."""
        if self._handshakes.refusal is not None:
            return WrongKeys(self._handshakes.refusal)
        return NoHead(f"the head at {self.head} has gone")

    def _send(self, message: ClientMessage) -> None:
        if self._socket is not None:
            try:
                self._socket.send(encoder.encode(message), zmq.NOBLOCK)
            except zmq.Again:  # after a handshake that did not fit, ZeroMQ gives the connection up
                self._notice_loss()
                raise self._loss() from None
            self._receive()  # sending may take note of an arrival, of which the file descriptor then says nothing

    def _receive(self) -> None:
        """Hand the replies that are there to the requests that wait for them.

        Straight from the event loop, many at a time: a task that awaits each message costs several times as much. The
        socket's file descriptor tells only of changes, so nothing may be left behind.
        """
        for number in range(AT_ONCE):
            if self._socket is None:
                return
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                if self.gather and number:
                    self._rest(self._socket)
                return
            try:
                reply = head_decoder.decode(frame)
            except msgspec.DecodeError as error:
                reply = other_version(frame, error)
            waiting = self._replies.get(reply.request)
            if waiting is not None:
                with contextlib.suppress(asyncio.QueueFull):
                    waiting.put_nowait(reply)
        asyncio.get_running_loop().call_soon(self._receive)

    def _rest(self, socket: zmq.Socket[bytes]) -> None:
        """Let messages gather for a while."""
        if not self._resting:
            self._resting = True
            loop = asyncio.get_running_loop()
            loop.remove_reader(int(socket.fd))
            loop.call_later(self.gather, self._wake, socket)

    def _wake(self, socket: zmq.Socket[bytes]) -> None:
        self._resting = False
        if self._socket is socket:
            asyncio.get_running_loop().add_reader(int(socket.fd), self._receive)
            self._receive()

    def _notice_loss(self) -> None:
        """When the connection breaks, end what waits for answers: the head that returns no longer knows of it."""
        if self._handshakes.look():
            self._end_waiting()

    def _end_waiting(self) -> None:
        """No answer will come any more to what was asked so far."""
        for waiting in self._replies.values():
            if waiting.full():  # laps that nobody has read yet; the end must fit
                waiting.get_nowait()
            waiting.put_nowait(None)


def merge_tokens(batch: list[HeadMessage | None]) -> list[HeadMessage | None]:
    """Replies to one request, with neighbouring tokens made one message: who reads slowly has less to do for each."""
    merged = batch[:1]
    for reply in batch[1:]:
        last = merged[-1]
        if isinstance(reply, Tokens) and isinstance(last, Tokens):
            last.token_ids += reply.token_ids
            last.text += reply.text
            last.logprobs += reply.logprobs
        else:
            merged.append(reply)
    return merged


def other_version(frame: bytes, error: msgspec.DecodeError) -> Failed:
    """A reply that this client cannot read, as the failure of its request."""
    request = -1
    with contextlib.suppress(msgspec.DecodeError, AttributeError):
        request = msgspec.msgpack.decode(frame).get("request", -1)
    return Failed(
        request, "bad_request", f"the head's answer cannot be read ({error}); install the same version of ring on both"
    )
