"""Many connections of every kind at once, over plain sockets: patient, slow, half-sent, and gone in the middle."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter

TOKENS = 12
LONG = 400
CONNECTIONS = ("whole", "stream", "slow", "half a body", "half the headers", "gone in the stream", "gone at once")


async def storm(port: int, connections: int) -> Counter[str]:
    """Open so many connections, their kinds by turns; returns how many of each kind ended in which way.

    The half-sent ones hold on until all others are done.
    """
    outcomes: Counter[str] = Counter()
    others_done = asyncio.Event()
    left = 0

    async def one(kind: str) -> None:
        nonlocal left
        outcome = await talk(port, kind, others_done)
        outcomes[f"{kind}: {outcome}"] += 1
        if "half" not in kind:
            left -= 1
            if left == 0:
                others_done.set()

    kinds = [CONNECTIONS[index % len(CONNECTIONS)] for index in range(connections)]
    left = sum("half" not in kind for kind in kinds)
    await asyncio.gather(*(one(kind) for kind in kinds))
    return outcomes


async def talk(port: int, kind: str, others_done: asyncio.Event) -> str:
    """One connection; how it ended."""
    reader, writer = await connect(port, small_buffer=kind == "slow")
    try:
        gone = kind.startswith("gone")
        body = {"prompt": [1, 2, 3], "max_tokens": LONG if gone else TOKENS, "temperature": 0, "ignore_eos": True}
        body["stream"] = kind in ("stream", "slow", "gone in the stream")
        raw = json.dumps(body).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(raw)
        if kind == "half the headers":
            writer.write(head[:40])
        elif kind == "half a body":
            writer.write(head + raw[:20])
        else:
            writer.write(head + raw)
        await writer.drain()
        if "half" in kind:
            await others_done.wait()
            return "held on"
        if kind == "gone at once":
            return "left"
        if kind == "gone in the stream":
            first = await reader.read(200)
            return "left" if b" 200 " in first else verdict(first + await reader.read())
        answer = bytearray()
        while piece := await reader.read(256 if kind == "slow" else 1 << 16):
            answer += piece
            if kind == "slow":
                await asyncio.sleep(0.005)
        return verdict(bytes(answer))
    finally:
        writer.close()


async def connect(port: int, small_buffer: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection; one with a small buffer makes the server wait for its reader."""
    client = socket.socket()
    client.setblocking(False)
    if small_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=client, limit=1024 if small_buffer else 1 << 16)


def verdict(answer: bytes) -> str:
    """What the server said: all of it, or a clear no."""
    status = answer.split(b" ", 2)[1].decode() if answer.startswith(b"HTTP/1.1 ") else "no answer"
    if status != "200":
        return status
    streamed = answer.rstrip(b"\r\n0").endswith(b"data: [DONE]") and answer.count(b'"finish_reason":"length"') == 1
    whole = b'"completion_tokens":%d' % TOKENS in answer
    return "complete" if streamed or whole else "cut short"
