"""A fetch that was killed goes on from what is there, once that has been checked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.spawn import context
from tests.weights_tools.conftest import Save
from tests.weights_tools.fetching import BIG, content, get, own_bytes
from tests.weights_tools.hub import REPO, Hub
from weights_tools import remote, stream
from weights_tools.checkpoint import Checkpoint, CheckpointError
from weights_tools.fetch import Fetched, fetch
from weights_tools.place import SplitError
from weights_tools.shard import WEIGHTS
from weights_tools.split import split

pytestmark = pytest.mark.usefixtures("hasty")


WIDE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 4}


def fetch_in_steps(out: Path, endpoint: str, dtype: str | None) -> Fetched:
    """With a journal that has a line every 256 KiB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "STEP", 256 << 10)
        return fetch(REPO, out, stage=1, stages=2, endpoint=endpoint, dtype=dtype)


@pytest.mark.parametrize(
    ("model_type", "stored", "dtype", "fields"),
    [
        ("llama", torch.bfloat16, None, WIDE),
        ("llama", torch.float32, "bfloat16", WIDE),
        ("llama", torch.bfloat16, "int8", WIDE),
        ("mixtral", torch.bfloat16, "float32", WIDE | {"num_local_experts": 4, "intermediate_size": 1024}),
    ],
)
def test_killed_half_way_it_goes_on(
    save: Save, tmp_path: Path, model_type: str, stored: torch.dtype, dtype: str | None, fields: dict[str, Any]
) -> None:
    """`kill -9` when three quarters have been sent; the second run asks for little more than the rest."""
    folder = save(model_type, dtype=stored, file_size="20MB", **fields)
    needed = own_bytes(Checkpoint(folder), 2, 1)
    enough, dead = threading.Event(), threading.Event()

    def pace(sent: int) -> None:
        if not dead.is_set() and sent > needed * 3 // 4:
            enough.set()
            dead.wait(60)

    with Hub(folder, pace=pace) as hub:
        child = context.Process(target=fetch_in_steps, args=(tmp_path / "out", hub.endpoint, dtype), daemon=True)
        child.start()
        assert enough.wait(60)
        while (tmp_path / "out" / ".fetch-1" / "journal").read_bytes().count(b"\n") < 10:  # it is still reading what was sent
            assert child.is_alive()
            time.sleep(0.01)
        child.kill()
        child.join()
        dead.set()
        assert not (tmp_path / "out" / "stage-1").exists()
        hub.sent = 0
        fetched = fetch_in_steps(tmp_path / "out", hub.endpoint, dtype)
        assert fetched.kept > 0
        assert hub.sent < needed - fetched.kept // 4, (hub.sent, needed, fetched.kept)
    split(str(folder), tmp_path / "split", stages=2, dtype=dtype)
    assert content(tmp_path / "out" / "stage-1") == content(tmp_path / "split" / "stage-1")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stage-1"]


def interrupted(save: Save, out: Path) -> tuple[Path, Path]:
    """A fetch that the network ended after some tensors; the checkpoint, and the work that was kept."""
    folder = save(**BIG)
    with (
        Hub(folder, fault=lambda request: "403" if request.number > 52 else None) as hub,
        pytest.raises(CheckpointError),
    ):
        get(hub, out, 1, stages=2)
    return folder, out / ".fetch-1"


def test_what_was_kept_is_checked(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte that flipped on the disk, and a last line that was cut off, as when the power goes."""
    monkeypatch.setattr(remote, "SMALL", 0)
    folder, work = interrupted(save, tmp_path / "out")
    assert len((work / "journal").read_text().splitlines()) > 4
    raw = bytearray((work / "shard" / WEIGHTS).read_bytes())
    for at in range(4096, len(raw), 70_000):
        raw[at] ^= 1
    (work / "shard" / WEIGHTS).write_bytes(raw)
    with (work / "journal").open("ab") as file:
        file.write(b'{"tensor":"model.layers.1.')
    split(str(folder), tmp_path / "split", stages=2)
    with Hub(folder) as hub:
        fetched = get(hub, tmp_path / "out", 1, stages=2)
    assert content(fetched.folder) == content(tmp_path / "split" / "stage-1")


def test_what_was_kept_of_another_cut_is_not_used(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SMALL", 0)
    folder, _ = interrupted(save, tmp_path / "out")
    split(str(folder), tmp_path / "split", stages=3)
    with Hub(folder) as hub:
        fetched = get(hub, tmp_path / "out", 1, stages=3)
        assert fetched.kept == 0
    assert content(fetched.folder) == content(tmp_path / "split" / "stage-1")


def test_what_is_there_is_left_or_replaced(save: Save, tmp_path: Path) -> None:
    with Hub(save()) as hub:
        first = get(hub, tmp_path / "out", 1, stages=2)
        before = hub.sent
        again = get(hub, tmp_path / "out", 1, stages=2)
        assert again.manifest == first.manifest and again.kept == first.manifest.bytes
        assert hub.sent < 1.5 * before
        with pytest.raises(SplitError, match="--force"):
            get(hub, tmp_path / "out", 1, stages=2, dtype="bfloat16")
        other = get(hub, tmp_path / "out", 1, stages=2, dtype="bfloat16", force=True)
        assert other.manifest.dtype == "bfloat16"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stage-1"]


def test_only_one_at_a_time(save: Save, tmp_path: Path) -> None:
    """A second fetch of the same stage into the same folder is refused; of another stage it is not."""
    outcome: list[str] = []

    def second(hub: Hub) -> Callable[[int], None]:
        def run(_: int) -> None:
            if not outcome:
                outcome.append("")
                with pytest.raises(SplitError) as caught:
                    get(hub, tmp_path / "out", 1, stages=2)
                outcome[0] = str(caught.value)
                get(hub, tmp_path / "out", 0, stages=2)

        return run

    with Hub(save()) as hub:
        get(hub, tmp_path / "out", 1, stages=2, progress=second(hub))
    assert "another" in outcome[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["stage-0", "stage-1"]
