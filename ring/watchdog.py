"""Ends a node that is alive but stuck, so that whoever supervises it starts it again and the ring heals."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from ring.launch import STUCK
from ring.node import StageLoop

PATIENCE = 10


class Watchdog(threading.Thread):
    """Watches how long the stage computes one microbatch.

    A long prefill is not a hang: the limit is `seconds`, or ten times the longest microbatch so far if that is more.
    """

    def __init__(self, loop: StageLoop, seconds: float, say: Callable[[str], None]) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.loop, self.seconds, self.say = loop, seconds, say

    def run(self) -> None:
        """Look once a second, until the process ends."""
        while True:
            time.sleep(1.0)
            since = self.loop.busy_since
            limit = max(self.seconds, PATIENCE * self.loop.longest_s)
            if since is not None and time.monotonic() - since > limit:
                self.say(f"stuck: one microbatch has taken more than {limit:.0f} s; giving up, to be started again")
                os._exit(STUCK)
