"""How the ring forms, lap by lap, and what it says when it cannot."""

from __future__ import annotations

from ring.head.forming import Formation
from ring.node import mismatch
from ring.wire.messages import PROTOCOL, Hello, StageInfo


def info(stage: int, stages: int = 3, fingerprint: str = "model", first: int | None = None) -> StageInfo:
    first = stage * 2 if first is None else first
    return StageInfo(
        stage=stage, stages=stages, first_layer=first, end_layer=first + 2, layers=stages * 2, fingerprint=fingerprint,
        dtype="float32", host=f"host{stage}", pid=1, incarnation=stage + 7, clock="c", version="0", listen=f"tcp://{stage}",
        shard_bytes=1, kv_tokens=100 + stage, kv_token_bytes=1, threads=1,
    )  # fmt: skip


def go_round(hello: Hello, nodes: list[StageInfo]) -> Hello:
    for node in nodes:
        if hello.problem is None and hello.lap == 1:
            hello.problem = mismatch(hello, node)
            if hello.problem is None:
                hello.stages.append(node)
    return hello


def first_lap(nodes: list[StageInfo], fingerprint: str = "model") -> Formation:
    formation = Formation(fingerprint)
    hello = formation.hello_due(0.0)
    assert hello is not None
    second = formation.returned(go_round(hello, nodes))
    if second is not None:
        formation.returned(second)
    return formation


def test_a_ring_forms_in_two_laps() -> None:
    formation = first_lap([info(0), info(1), info(2)])
    assert formation.state == "ready"
    assert [stage.kv_tokens for stage in formation.stages] == [100, 101, 102]
    assert formation.hello_due(1e9) is None


def test_a_break_starts_over_with_the_next_epoch() -> None:
    formation = first_lap([info(0, 1)])
    before = formation.epoch
    formation.broken("stage 1 is gone")
    hello = formation.hello_due(0.0)
    assert hello is not None
    assert hello.epoch == formation.epoch == before + 1
    assert formation.returned(Hello(PROTOCOL, before, "model", 2)) is None
    assert formation.state == "forming", "what belongs to the old epoch does not count"


def test_hellos_repeat_but_not_all_the_time() -> None:
    formation = Formation("model")
    assert formation.hello_due(10.0) is not None
    assert formation.hello_due(10.1) is None
    assert formation.hello_due(11.0) is not None


def test_mismatches_name_the_node() -> None:
    cases = {
        "another model": [info(0), info(1, fingerprint="other"), info(2)],
        "reached as stage 1": [info(0), info(2), info(1)],
        "--next of the node at tcp://1": [info(0), info(1)],
        "split once": [info(0), info(1, first=3), info(2)],
        "--next of the node at tcp://0": [info(0)],
    }
    for words, nodes in cases.items():
        formation = first_lap(nodes)
        assert formation.state == "mismatch"
        assert words in formation.detail, formation.detail
    assert "tcp://1 on host1" in first_lap(cases["another model"]).detail


def test_another_protocol_version_is_named() -> None:
    problem = mismatch(Hello(PROTOCOL + 1, 1, "model"), info(1))
    assert problem is not None
    assert f"protocol {PROTOCOL}, the head {PROTOCOL + 1}" in problem


def test_a_ring_that_never_formed_says_for_whom_it_waits() -> None:
    formation = Formation("model")
    formation.waits_for("tcp://beta:5600")
    assert formation.detail == "waiting for stage 1 at tcp://beta:5600, which does not answer"
    formation.waits_for(None)
    assert "each node prints what it waits for" in formation.detail
    formed = first_lap([info(0), info(1), info(2)])
    formed.broken("stage 1 is gone")
    formed.waits_for("tcp://beta:5600")
    assert formed.detail == "stage 1 is gone"
