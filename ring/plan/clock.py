"""Simulated time: what happens next is always the earliest of the events that are due."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Clock:
    """Events, and the second `now` at which the last of them happened."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = itertools.count()
        self._epoch = 0

    def at(self, when: float, act: Callable[..., None], *arguments: object, always: bool = False) -> None:
        """Something will happen; unless `always`, only if the clock does not `forget` it until then."""
        heapq.heappush(self._events, (when, next(self._order), -1 if always else self._epoch, act, arguments))

    def forget(self) -> None:
        """What was to happen does not."""
        self._epoch += 1

    def step(self) -> bool:
        """Let the next event happen; False if there is none."""
        if not self._events:
            return False
        self.now, _, epoch, act, arguments = heapq.heappop(self._events)
        if epoch in (-1, self._epoch):
            act(*arguments)
        return True
