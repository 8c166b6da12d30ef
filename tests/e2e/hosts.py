"""Hosts of their own on this machine: network namespaces, and a network between them that delays and loses packets.

Each host has a TUN device. What it sends is read here, held back, sometimes dropped, and given to the device that has its
destination. So nothing is needed of the kernel but namespaces and TUN; netem is a module that many kernels come without.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from tests.e2e.spawn import enter

T = TypeVar("T")
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


class NotPermitted(Exception):
    """No namespaces or no TUN here; says why."""


class Hosts:
    """So many hosts, `10.77.0.1` and up, on a network where a packet takes `delay_s` and every `loses`th is lost."""

    def __init__(self, count: int, delay_s: float, loses: int) -> None:
        self.count, self.delay_s, self.loses = count, delay_s, loses
        self.passed = self.lost = 0
        self.devices: dict[bytes, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def namespace(self, host: int) -> str:
        """A host's namespace."""
        return f"ring-{os.getpid()}-{host}"

    def ip(self, host: int) -> str:
        """A host's address; hosts are numbered from 1."""
        return f"10.77.0.{host}"

    def __enter__(self) -> Self:
        try:
            for host in range(1, self.count + 1):
                self._add(host)
        except (OSError, subprocess.CalledProcessError) as error:
            self._remove()
            detail = getattr(error, "stderr", None) or error
            raise NotPermitted(f"network namespaces with TUN devices cannot be made here: {detail}") from None
        self._thread.start()
        return self

    def _add(self, host: int) -> None:
        if shutil.which("ip") is None:
            raise OSError("there is no `ip` command")
        name, namespace = f"rt{os.getpid()}h{host}", self.namespace(host)
        ip("netns", "add", namespace)
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self.devices[bytes(map(int, self.ip(host).split(".")))] = device
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
        ip("link", "set", "dev", name, "netns", namespace)
        ip("-n", namespace, "address", "add", f"{self.ip(host)}/24", "dev", name)
        ip("-n", namespace, "link", "set", name, "up")
        ip("-n", namespace, "link", "set", "lo", "up")

    def _carry(self) -> None:
        """The network."""
        waiting: list[tuple[float, int, int, bytes]] = []
        while not self._stop.is_set():
            patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.05
            for device in select.select(list(self.devices.values()), [], [], patience)[0]:
                packet = os.read(device, 65536)
                target = self.devices.get(packet[16:20]) if packet[0] >> 4 == 4 else None
                if target is None:
                    continue
                self.passed += 1
                if self.passed % self.loses == 0:
                    self.lost += 1
                else:
                    heapq.heappush(waiting, (time.monotonic() + self.delay_s, self.passed, target, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(waiting)
                try:
                    os.write(target, packet)
                except BlockingIOError:
                    self.lost += 1  # its queue is full, as may happen on any network

    def run(self, host: int, call: Callable[[], T]) -> T:
        """Call it as if on a host: in a thread whose sockets, and those of the threads that it starts, are there."""
        with ThreadPoolExecutor(1, initializer=enter, initargs=(self.namespace(host),)) as pool:
            return pool.submit(call).result()

    def _remove(self) -> None:
        for device in self.devices.values():
            os.close(device)  # with which it is gone
        for host in range(1, self.count + 1):
            subprocess.run(["ip", "netns", "delete", self.namespace(host)], capture_output=True, check=False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._remove()


def ip(*arguments: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
