"""Prompt lookup: what followed the last few tokens when they came before is a guess at what follows now. Pure.

A guess costs a lap nothing but a few rows, and every right one saves a lap. The ring checks them all in one run and
the head keeps only what it would have said anyway (Saxena, Prompt Lookup Decoding, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, field

GRAMS = (4, 3, 2)
MOST = 15
FIRST = 4
PAUSE = 8
LONGEST_PAUSE = 256


@dataclass(slots=True)
class Drafter:
    """Guesses the tokens of one sequence; guesses more after right ones, pauses after wrong ones."""

    tokens: list[int] = field(default_factory=list)
    width: int = FIRST
    pause: int = PAUSE
    _sleep: int = 0
    _seen: list[dict[tuple[int, ...], int]] = field(default_factory=lambda: [{} for _ in GRAMS])

    def learn(self, tokens: list[int]) -> None:
        """Take the next tokens of the sequence."""
        for token in tokens:
            # What ended before this token is followed by it. The newest place wins.
            for n, places in zip(GRAMS, self._seen, strict=True):
                if len(self.tokens) >= n:
                    places[tuple(self.tokens[-n:])] = len(self.tokens)
            self.tokens.append(token)

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; often none."""
        if self._sleep:
            self._sleep -= 1
            return []
        most = min(most, self.width)
        for n, places in zip(GRAMS, self._seen, strict=True):
            at = places.get(tuple(self.tokens[-n:])) if len(self.tokens) > n else None
            if at is not None and most > 0:
                drafts = self.tokens[at : at + most]
                while len(drafts) < most:  # it repeats up to now: go on repeating
                    drafts += self.tokens[at : at + most - len(drafts)]
                return drafts
        return []

    def judge(self, proposed: int, right: int) -> None:
        """So many of the last guess were right."""
        if right == proposed:
            self.width = min(MOST, 2 * self.width)
        else:
            self.width = max(1, right + 1)
        if right:
            self.pause = PAUSE
        else:
            self._sleep = self.pause
            self.pause = min(LONGEST_PAUSE, 2 * self.pause)
