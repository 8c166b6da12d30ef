"""Starts a node: loads the shard, opens the sockets, and runs the stage's loop (and, on stage 0, the head)."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil
import torch
import zmq
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ring.head.head import Head
from ring.head.requests import Limits
from ring.head.tokenizer import load_vocabulary
from ring.node import StageLoop, describe
from ring.parent import stop_with_parent
from ring.stage.load import load_stage
from ring.stage.model import StageModel
from ring.watchdog import Watchdog
from ring.wire.clients import DEFAULT_HEAD, MAX_REQUEST
from ring.wire.keys import Keys, authenticated, load_keys
from ring.wire.links import Arrivals, Inbox, Outbox, RingReceiver
from ring.wire.messages import StageInfo
from ring.wire.sockets import bind, is_exposed
from weights_tools.shard import Manifest, read_manifest
from weights_tools.skeleton import hush_transformers

Context = zmq.Context[zmq.Socket[bytes]]

PROGRESS_FROM = 256 << 20
CLIENT_QUEUE = 10_000


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What `ring node` is told. `kv_memory` is in bytes; None takes half of the memory that is free after loading.
    `keys` is a folder, see `ring.wire.keys`; `watchdog` is in seconds. `advertise` is where others reach what listens at
    `listen`, if that is another address."""

    shard: Path
    listen: str
    next: str
    advertise: str | None = None
    clients: str = DEFAULT_HEAD
    threads: int | None = None
    kv_memory: int | None = None
    device: str = "cpu"
    verify: bool = True
    with_parent: bool = False
    spare: bool = False
    keys: Path | None = None
    insecure: bool = False
    watchdog: float = 60.0
    limits: Limits = field(default_factory=Limits)


class StartError(ValueError):
    """A node that cannot start; the message is one sentence."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM with nothing to wait for."""


class Stopper:
    """What signals do. Ctrl-C stops at once; SIGTERM first lets the head's streams finish, if it has any.

    A later stage hands over by stopping: its successor tells the head at once, which turns to a spare or waits. `stop` is
    called with whether to stop at once, and may only set flags: a signal comes at any moment, and an exception that it
    raised inside a destructor would be lost. Until there is a loop to be told, an exception has to do.
    """

    def __init__(self) -> None:
        self.stop: Callable[[bool], None] | None = None
        self.woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())  # so that a poll of `woken` ends
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.stop is None:
            raise Stopped
        self.stop(number == signal.SIGINT)


def run_node(options: NodeOptions, say: Callable[[str], None]) -> None:
    """Run one node until Ctrl-C or SIGTERM.

    Raises:
        ShardError, AddressError, KeyFileError, StartError: it cannot start.
        Stopped: it was told to stop before it had begun.
    """
    stopper = Stopper()
    if options.with_parent:
        stop_with_parent()
    hush_transformers()
    # The inbox must not wait long for the interpreter while the stage computes, to stamp arrivals when they come.
    sys.setswitchinterval(0.0005)
    torch.set_num_threads(options.threads or psutil.cpu_count(logical=False) or 1)
    manifest = read_manifest(options.shard)
    if options.spare and manifest.is_first:
        raise StartError("stage 0 cannot have a spare, as clients know its address; start it again when it is lost")
    keys = load_keys(options.keys) if options.keys else None
    check_exposure(options, manifest, say)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with authenticated(context, keys):
            if manifest.is_first:
                _run_first(options, manifest, context, keys, stopper, say)
            else:
                _run_later(options, context, keys, stopper, say)
    except Stopped:
        pass
    finally:
        context.term()  # wakes the threads that wait on sockets; each closes its own
    say("stopped")


def check_exposure(options: NodeOptions, manifest: Manifest, say: Callable[[str], None]) -> None:
    """Whoever reaches an open port could feed the ring or read along, so without keys only loopback is served.

    Raises:
        StartError: an address that other machines reach, no keys, and not `insecure`.
    """
    addresses = [options.listen, options.next, *([options.clients] if manifest.is_first else [])]
    exposed = [address for address in addresses if is_exposed(address)]
    if not exposed or options.keys:
        return
    if not options.insecure:
        raise StartError(
            f"{exposed[0]} can be reached from other machines, and there are no keys to tell friend from foe; make some with "
            "`ring keys new` and give the folder with --keys, or say --insecure on a network that you trust"
        )
    say(f"warning: --insecure: whoever reaches {', '.join(exposed)} can use this ring, change its answers and read along")


def _run_later(
    options: NodeOptions,
    context: Context,
    keys: Keys | None,
    stopper: Stopper,
    say: Callable[[str], None],
) -> None:
    """A later stage's node: its loop in this thread, its inbox in another."""
    with contextlib.ExitStack() as cleanup:
        inbox = Inbox(context, options.listen, keys)
        cleanup.callback(inbox.abandon)
        outbox = Outbox(context, options.next, keys)
        cleanup.callback(outbox.close)
        stage, info = _load(options, say)
        inbox.start()
        loop = StageLoop(stage, info, inbox, outbox, inbox.receiver, say, options.spare)
        if options.spare:
            say(f"a spare for stage {info.stage}: waiting until it is needed")
        Watchdog(loop, options.watchdog, say).start()
        stopper.stop = lambda at_once: loop.stop()
        loop.run()


def _run_first(
    options: NodeOptions,
    manifest: Manifest,
    context: Context,
    keys: Keys | None,
    stopper: Stopper,
    say: Callable[[str], None],
) -> None:
    """Stage 0's node: the head in this thread, the stage's loop in another."""
    with contextlib.ExitStack() as cleanup:
        from_ring = RingReceiver(context, options.listen, keys)
        cleanup.callback(from_ring.close)
        router = bind(context, zmq.ROUTER, options.clients, keys, MAX_REQUEST)
        cleanup.callback(router.close, 200)
        router.router_mandatory = True
        router.sndhwm = CLIENT_QUEUE
        vocabulary = load_vocabulary(options.shard, manifest)
        stage, info = _load(options, say)
        arrivals = Arrivals()
        loop = StageLoop(stage, info, arrivals, Outbox(context, options.next, keys), from_ring, say)
        worker = threading.Thread(target=_run_loop, args=(loop, torch.get_num_threads()), name="stage", daemon=True)
        worker.start()
        cleanup.callback(arrivals.put, None)
        Watchdog(loop, options.watchdog, say).start()
        say(f"clients are served at {options.clients}")
        head = Head(info, vocabulary, arrivals, from_ring, router, options.limits, say, loop.blocked)
        stopper.stop = lambda at_once: head.stop(at_once or options.with_parent)
        head.run(stopper.woken)


def _run_loop(loop: StageLoop, threads: int) -> None:
    """Stage 0's loop in its thread."""
    torch.set_num_threads(threads)  # torch keeps it for each thread
    try:
        loop.run()
    except zmq.ContextTerminated:
        pass
    finally:
        loop.outbox.close()


def _load(options: NodeOptions, say: Callable[[str], None]) -> tuple[StageModel, StageInfo]:
    """Load the stage and size its KV cache; says so in one line."""
    manifest = read_manifest(options.shard)
    try:
        torch.device(options.device)
    except RuntimeError as error:
        raise StartError(f"'{options.device}' is no device: {str(error).splitlines()[0]}") from None
    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True, disable=manifest.bytes < PROGRESS_FROM or not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=manifest.bytes)
        stage = load_stage(options.shard, options.device, options.verify, lambda size: bar.advance(task, size))
    token_bytes = stage.measure_token_bytes()
    memory = psutil.virtual_memory().available // 2 if options.kv_memory is None else options.kv_memory
    if memory < token_bytes:
        raise StartError(f"--kv-memory of {memory} bytes holds no token; one takes {token_bytes} bytes on this stage")
    info = describe(manifest, options.advertise or options.listen, memory // token_bytes, token_bytes)
    say(
        f"stage {info.stage} of {info.stages} is ready: {manifest.name}, layers {info.first_layer}-{info.end_layer - 1}, "
        f"{info.dtype}, {info.shard_bytes / 1e6:.1f} MB, room for {info.kv_tokens} tokens; "
        f"listening on {options.listen}, next {options.next}"
    )
    return stage, info
