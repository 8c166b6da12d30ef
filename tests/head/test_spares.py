"""Which spare takes which place, and when."""

from __future__ import annotations

from ring.head.spares import ALIVE_S, PATIENCE_S, Spares
from tests.head.test_forming import info


def test_a_lost_stage_is_replaced_at_once_by_its_living_spare() -> None:
    spares = Spares()
    assert spares.announced(info(1), 10.0)
    assert not spares.announced(info(1), 11.0)
    assert spares.choose(11.0) == {}
    spares.formed()
    spares.lost(1, 12.0)
    assert spares.choose(12.0) == {1: "tcp://1"}
    spares.formed()
    spares.lost(2, 20.0)
    assert spares.choose(20.0) == {1: "tcp://1"}, "it stays in its place when another is lost"


def test_a_silent_spare_does_not_count() -> None:
    spares = Spares()
    spares.announced(info(1), 10.0)
    spares.lost(1, 10.0 + ALIVE_S)
    assert spares.choose(10.0 + ALIVE_S) == {}
    spares.announced(info(1), 20.0)
    assert spares.choose(20.0) == {1: "tcp://1"}, "one that comes later does"


def test_a_lost_spare_gives_the_place_back() -> None:
    spares = Spares()
    spares.announced(info(1), 10.0)
    spares.lost(1, 10.0)
    spares.choose(10.0)
    spares.formed()
    spares.lost(1, 20.0)
    assert spares.choose(20.0) == {}


def test_every_spare_is_used_when_that_is_not_enough_and_none_when_not_even_then() -> None:
    spares = Spares()
    now = 10.0
    for stage in (1, 2):
        spares.announced(info(stage), now)
    spares.lost(1, now)
    assert spares.choose(now) == {1: "tcp://1"}
    now += PATIENCE_S + 0.1
    for stage in (1, 2):
        spares.announced(info(stage), now)
    assert spares.choose(now) == {1: "tcp://1", 2: "tcp://2"}
    now += PATIENCE_S
    assert spares.choose(now) == {}
