"""A sequence as the scheduler sees it: token ids, how far they have been dispatched, and its slot."""

from __future__ import annotations

from dataclasses import dataclass, field

from ring.head.drafts import Drafter
from ring.wire.messages import Sampling


@dataclass(eq=False, slots=True)
class Sequence:
    """One prompt and what has been generated for it.

    `dispatched` counts the tokens that were sent into the ring (their KV is cached, or will be once the microbatches in
    flight have passed). `drafts` are guesses at what follows that are being checked in the ring. `prefill` is how many
    tokens go in as prefill before decoding, one known token a lap, begins: the prompt, or after a failure everything
    known then.
    """

    number: int
    prompt: list[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    slot: int | None = None
    dispatched: int = 0
    generated: list[int] = field(default_factory=list)
    drafter: Drafter | None = None
    drafts: list[int] = field(default_factory=list)
    prefill: int = field(init=False)
    finished: bool = False

    def __post_init__(self) -> None:
        self.prefill = len(self.prompt)
        if self.drafter is not None:
            self.drafter.learn(self.prompt)

    def replay(self) -> None:
        """The KV caches are lost: prefill all that is known, then go on."""
        self.dispatched, self.prefill, self.drafts = 0, self.length, []

    @property
    def reserve(self) -> int:
        """KV tokens that the sequence may come to need; the last token it generates is never cached."""
        return len(self.prompt) + self.max_tokens - 1

    @property
    def length(self) -> int:
        """Tokens known so far."""
        return len(self.prompt) + len(self.generated)

    def extend(self, answers: list[int | None]) -> list[int | None]:
        """Take the answers to the last run: all up to the first that its drafts had not foreseen. Returns those; the last
        is None if the sequence has failed there."""
        right = 0
        while right < len(self.drafts) and self.drafts[right] == answers[right]:
            right += 1
        fresh = answers[: right + 1]
        known = [token for token in fresh if token is not None]
        if self.drafter is not None:
            if self.drafts:
                self.drafter.judge(len(self.drafts), right)
            self.drafter.learn(known)
        self.generated += known
        self.dispatched += right
        self.drafts = []
        return fresh

    @property
    def decoding(self) -> bool:
        """Past its prefill: it needs one token a lap."""
        return self.dispatched >= self.prefill

    def slice(self, start: int, count: int) -> list[int]:
        """Token ids at positions `start`..."""
        known = len(self.prompt)
        if start >= known:
            return self.generated[start - known : start - known + count]
        return (
            (self.prompt[start : start + count] + self.generated)[:count]
            if start + count > known
            else self.prompt[start : start + count]
        )
