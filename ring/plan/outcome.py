"""What a simulated ring is asked, what befalls it, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ring.bench.load import Round


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt of so many tokens that arrives `at` this second, for exactly `new_tokens`."""

    prompt: int
    new_tokens: int
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Outage:
    """A stage that is gone from second `at` on, for `seconds`."""

    stage: int
    at: float
    seconds: float


@dataclass(slots=True)
class Outcome:
    """What a simulated ring has done: when each request got its tokens, as in a real round, and how long each stage
    computed. Times in seconds from the start; `laps` counts microbatches that came round."""

    requests: list[Request]
    arrivals: list[list[float]]
    busy: list[float]
    laps: int = 0

    @property
    def round(self) -> Round:
        """The same figures as of a real round."""
        from ring.bench.load import Round  # which knows sockets too

        return Round(self.arrivals)

    @property
    def ttft_s(self) -> float:
        """Mean time to first token, from each request's own arrival."""
        firsts = [times[0] - request.at for times, request in zip(self.arrivals, self.requests, strict=True)]
        return sum(firsts) / len(firsts)

    @property
    def itl_s(self) -> float:
        """Mean inter-token latency; 0 with fewer than two tokens."""
        gaps = self.gaps_s
        return sum(gaps) / len(gaps) if gaps else 0.0

    @property
    def gaps_s(self) -> list[float]:
        """All inter-token latencies."""
        return [b - a for times in self.arrivals for a, b in pairwise(times)]

    @property
    def bubble(self) -> float:
        """The share of the stages' time, from the first request to the last token, in which they computed nothing."""
        span = max(times[-1] for times in self.arrivals) - min(request.at for request in self.requests)
        return 1 - sum(self.busy) / (len(self.busy) * span) if span else 0.0
