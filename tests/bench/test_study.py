"""A study on a tiny model over real processes: interrupted, gone on with, reported."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from ring.bench.load import Round, random_prompts
from ring.bench.report import write_report
from ring.bench.shapes import BenchError
from ring.bench.study import RESULTS, Cell, Plan, read_records, run_study
from tests.models import make_checkpoint


def test_a_round_counts_only_while_all_decode() -> None:
    done = Round([[1.0, 2.0, 3.0], [2.5, 3.0, 3.5, 4.0]])
    assert done.rate == 7 / 4.0
    assert done.decode_rate == 2 / 0.5
    assert done.gaps_s == [1.0, 1.0, 0.5, 0.5, 0.5]


def test_prompts_are_the_same_every_time() -> None:
    assert random_prompts(2, 5, 100) == random_prompts(2, 5, 100)


def test_a_study_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RING_CACHE", str(tmp_path / "cache"))
    make_checkpoint(tmp_path / "model")
    plan = Plan(str(tmp_path / "model"), "float32", [2], [8, 600], [1, 2], 6, 1, 1, [1.0, 2.0])
    notes: list[str] = []
    rounds: list[int] = []
    folder = tmp_path / "study"
    run_study(plan, folder, notes.append, rounds.append)
    assert sum(rounds) == len(plan.cells())
    assert any("left out: a prompt of 600" in note for note in notes)
    records = read_records(folder)
    assert {record.cell for record in records} == {Cell(2, 8, 1), Cell(2, 8, 2)}
    assert all(abs(r.compute + r.queue + r.wire - 1) < 1e-6 and 0 <= r.idle <= 1 for r in records)

    with (folder / RESULTS).open("ab") as file:
        file.write(b'{"nodes": 2, "pro')  # a round that was cut off while it was written
    before = len(records)
    run_study(plan, folder, notes.append, rounds.append)
    assert len(read_records(folder)) == before, "nothing is measured twice"
    with pytest.raises(BenchError, match="another new_tokens"):
        run_study(replace(plan, new_tokens=7), folder, notes.append, rounds.append)

    written = {path.name for path in write_report(folder)}
    assert {"results.csv", "report.md"} <= written
    assert (folder / "results.csv").read_text().count("\n") == 3
    assert "| 2 | 8 | 1 |" in (folder / "report.md").read_text()


def test_stragglers_and_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RING_CACHE", str(tmp_path / "cache"))
    make_checkpoint(tmp_path / "model")
    plan = Plan(str(tmp_path / "model"), "float32", [1, 2], [8], [2], 40, 1, 1, [1.0, 2.0])
    folder = tmp_path / "study"
    run_study(plan, folder, lambda _: None, lambda _: None)
    records = {record.cell: record for record in read_records(folder)}
    assert list(records) == [Cell(1, 8, 2), Cell(2, 8, 2), Cell(2, 8, 2, lost=True), Cell(2, 8, 2, slow=2.0)]
    lost = records[Cell(2, 8, 2, lost=True)]
    assert lost.gap_s > 10 * lost.itl_s, "while a process starts, many tokens would have come"

    written = {path.name for path in write_report(folder)}
    report = (folder / "report.md").read_text()
    assert all(title in report for title in ("Scaling", "One node slowed", "A node killed and started again"))
    if importlib.util.find_spec("matplotlib"):
        assert {"rate-by-nodes.png", "shares.png", "scaling.png", "straggler.png"} <= written
