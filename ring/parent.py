"""A process that does not outlive the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal


def stop_with_parent() -> None:
    """Have the kernel send SIGTERM when the process that started this one is gone (Linux's PR_SET_PDEATHSIG)."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if parent == 1 or os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
