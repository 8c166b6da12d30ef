"""Whatever goes wrong between here and the Hub passes, or is said in a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.weights_tools.conftest import Save
from tests.weights_tools.fetching import BIG, content, get
from tests.weights_tools.hub import REPO, Hub, Request
from weights_tools import remote
from weights_tools.checkpoint import CheckpointError
from weights_tools.fetch import fetch
from weights_tools.shard import WEIGHTS
from weights_tools.split import split

pytestmark = pytest.mark.usefixtures("hasty")


FAULTS = ["500", "429", "reset", "truncate", "stall", "shift", "more"]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(remote, "SMALL", 0)
    folder = save(file_size="1MB", **BIG)
    split(str(folder), tmp_path / "split", stages=3)
    every = 25 if fault == "stall" else 3
    with Hub(folder, fault=lambda request: fault if request.number % every == every - 1 else None) as hub:
        fetched = get(hub, tmp_path / "out", 1, stages=3)
        assert content(fetched.folder) == content(tmp_path / "split" / "stage-1")
        assert any(request.number % every == every - 1 for request in hub.requests)


def test_what_broke_off_is_not_asked_for_again(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SMALL", 0)
    folder = save(**BIG)
    with Hub(folder) as hub:
        get(hub, tmp_path / "whole", 1, stages=3)
        whole = hub.sent
    with Hub(folder, fault=lambda request: "truncate" if request.number % 2 else None) as hub:
        get(hub, tmp_path / "broken", 1, stages=3)
        assert hub.sent == whole


def test_a_server_that_stays_broken(save: Save, tmp_path: Path) -> None:
    with (
        Hub(save(), fault=lambda request: "500" if request.number > 5 else None) as hub,
        pytest.raises(CheckpointError, match=r"cannot be fetched from .*HTTP 500; 8 times"),
    ):
        get(hub, tmp_path / "out", 0, stages=2)
    with pytest.raises(CheckpointError, match=r"3 times in a row") as caught:
        get(hub, tmp_path / "out", 0, stages=2)  # nobody listens any more
    assert "\n" not in str(caught.value)


def test_a_server_that_ignores_ranges(save: Save, tmp_path: Path) -> None:
    with (
        Hub(save(), fault=lambda _: "ignore") as hub,
        pytest.raises(CheckpointError, match="sends all of"),
    ):
        get(hub, tmp_path / "out", 0, stages=2)


def test_a_server_that_says_no(save: Save, tmp_path: Path) -> None:
    with Hub(save(), fault=lambda _: "403") as hub, pytest.raises(CheckpointError, match="hf auth login"):
        get(hub, tmp_path / "out", 0, stages=2)


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changes_in_between(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, etags: bool) -> None:
    """Without ETags only a change of size can be seen."""
    monkeypatch.setattr(remote, "SMALL", 0)
    folder = save(**BIG)
    tensors = load_file(folder / WEIGHTS)

    def change(request: Request) -> None:
        if request.number == 50:
            changed = tensors | {"extra": torch.zeros(3)} if not etags else {k: t + 1 for k, t in tensors.items()}
            save_file(changed, tmp_path / "new")
            (tmp_path / "new").rename(folder / WEIGHTS)

    with Hub(folder, fault=change, etags=etags) as hub, pytest.raises(CheckpointError, match="changed while it was fetched"):
        get(hub, tmp_path / "out", 1, stages=3)
    assert not (tmp_path / "out" / "stage-1").exists()
    split(str(folder), tmp_path / "split", stages=3)
    with Hub(folder) as hub:
        fetched = get(hub, tmp_path / "out", 1, stages=3)
        assert fetched.kept == 0
        assert content(fetched.folder) == content(tmp_path / "split" / "stage-1")


def test_a_truncated_file_is_named(save: Save, tmp_path: Path) -> None:
    folder = save()
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 1)
    with Hub(folder) as hub, pytest.raises(CheckpointError, match=rf"{REPO}/{WEIGHTS} is truncated"):
        get(hub, tmp_path / "out", 0, stages=2)


def test_a_small_file_is_checked_against_the_hubs_hash(save: Save, tmp_path: Path) -> None:
    with Hub(save(), fault=lambda _: "flip") as hub, pytest.raises(CheckpointError, match="its hash differs"):
        get(hub, tmp_path / "out", 0, stages=2)


def test_a_signed_address_is_used_again_without_the_token(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub sends to a store elsewhere; each file is looked up once, and the store never sees the token."""
    folder = save(file_size="40KB")
    expired: list[int] = []

    def expire(request: Request) -> str | None:
        large = request.end is not None and request.end - request.start > 64
        if large and request.number > 30 and not expired:
            expired.append(request.number)
            return "403"
        return None

    files = len(list(folder.glob("*.safetensors")))
    with Hub(folder, names_commits=False, fault=expire) as store, Hub(folder, store=store) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setattr(
            "weights_tools.remote.hf_hub_url",
            lambda name, file, revision, endpoint: f"{hub.endpoint}/{name}/resolve/{revision}/{file}",
        )
        fetch(REPO, tmp_path / "out", stage=1, stages=2)
        weights = [request for request in hub.requests if request.file.endswith(".safetensors")]
        assert len(weights) == files + len(expired) and expired
        assert all(request.headers.get("authorization") == "Bearer hf_secret" for request in hub.requests)
        assert not any("authorization" in request.headers for request in store.requests)


def test_another_endpoint_does_not_get_the_token(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with Hub(save()) as hub:
        get(hub, tmp_path / "out", 1, stages=2)
        assert not any("authorization" in request.headers for request in hub.requests)


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        fetch(REPO, tmp_path / "out", stage=0, stages=2)
