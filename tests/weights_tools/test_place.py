from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from weights_tools.place import OLD, PARTIAL, SplitError, check_free, occupied, restore
from weights_tools.shard import MANIFEST


def make(folder: Path, content: str, stages: int) -> None:
    for stage in range(stages):
        shard = folder / f"stage-{stage}"
        shard.mkdir(parents=True)
        (shard / MANIFEST).write_text(f"{content} {stage}")


def content(out: Path) -> list[str]:
    return [(path / MANIFEST).read_text() for path in sorted(out.iterdir())]


def write(out: Path, content: str, stages: int) -> None:
    with occupied(out, force=True) as work:
        make(work, content, stages)


@pytest.mark.parametrize(("old", "new"), [(3, 2), (2, 3), (2, 2)])
def test_killed_at_every_rename(tmp_path: Path, old: int, new: int) -> None:
    """A process killed before any of its renames; whatever it leaves, the next split finds the old or the new shards."""
    outcomes = set()
    for at in range(old + new + 2):
        out = tmp_path / str(at)
        make(out, "old", old)
        if (child := os.fork()) == 0:
            rename, calls = Path.rename, 0

            def die(self: Path, target: Path) -> Path:
                nonlocal calls
                if calls == at:  # noqa: B023  # called in this very round
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1
                return rename(self, target)  # noqa: B023

            Path.rename = die  # type: ignore[method-assign,assignment]
            write(out, "new", new)
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(SplitError, match="--force"):
            check_free(out, force=False)
        restore(out)
        kind = content(out)[0].split()[0]
        assert content(out) == [f"{kind} {k}" for k in range(old if kind == "old" else new)]
        outcomes.add(kind)
    assert outcomes == {"old", "new"}


def test_restore_can_itself_be_killed(tmp_path: Path) -> None:
    """Half undone: new stages 1 and 2 are back in the working folder, new stage 0 still stands in the old one's place."""
    make(tmp_path / PARTIAL / OLD, "old", 2)
    make(tmp_path, "new", 1)
    (tmp_path / PARTIAL / "stage-1").mkdir()
    restore(tmp_path)
    assert content(tmp_path) == ["old 0", "old 1"]


def test_two_at_once(tmp_path: Path) -> None:
    with occupied(tmp_path / "out", force=False) as work:
        make(work, "first", 1)
        with pytest.raises(SplitError, match="another split is writing"), occupied(tmp_path / "out", force=False):
            pass
        assert work.exists()
    assert content(tmp_path / "out") == ["first 0"]


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(SplitError, match="is not a folder"):
        check_free(tmp_path / "out", force=True)
