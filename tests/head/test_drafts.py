"""Guesses: right on text that repeats, few and ever fewer on text that does not."""

from __future__ import annotations

import random

from ring.head.drafts import MOST, Drafter


def laps(text: list[int], prompt: int) -> tuple[int, int]:
    """How many laps it takes to say the rest of a text, and how many guesses were sent along."""
    drafter = Drafter()
    drafter.learn(text[:prompt])
    at, count, guessed = prompt, 0, 0
    while at < len(text):
        drafts = drafter.propose(min(MOST, len(text) - at - 1))
        right = 0
        while right < len(drafts) and drafts[right] == text[at + right]:
            right += 1
        if drafts:
            drafter.judge(len(drafts), right)
        drafter.learn(text[at : at + right + 1])
        at, count, guessed = at + right + 1, count + 1, guessed + len(drafts)
    return count, guessed


def test_a_quoted_prompt_takes_few_laps() -> None:
    chance = random.Random(0)
    passage = [chance.randrange(10_000) for _ in range(200)]
    count, _ = laps(passage + passage, prompt=202)
    assert count < 30


def test_a_loop_is_followed_beyond_what_is_known() -> None:
    count, _ = laps([1, 2, 3] * 40, prompt=9)
    assert count < 20


def test_random_text_is_left_alone() -> None:
    chance = random.Random(0)
    count, guessed = laps([chance.randrange(10_000) for _ in range(1000)], prompt=500)
    assert (count, guessed) == (500, 0)


def test_wrong_guesses_become_rare() -> None:
    chance = random.Random(0)
    count, guessed = laps([chance.randrange(8) for _ in range(3000)], prompt=1000)
    assert guessed < 0.25 * count


def test_nothing_is_guessed_where_there_is_no_room() -> None:
    drafter = Drafter()
    drafter.learn([1, 2, 3] * 10)
    assert drafter.propose(0) == []
    assert len(drafter.propose(2)) == 2
