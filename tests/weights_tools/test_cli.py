from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from transformers import PreTrainedConfig
from typer.testing import CliRunner

from tests.weights_tools.conftest import Save
from weights_tools import pocket
from weights_tools.cli import add_commands
from weights_tools.shard import WEIGHTS
from weights_tools.skeleton import Unservable


def run(*args: object, refuse: str | None = None) -> tuple[int, str, str]:
    def prove(_: PreTrainedConfig) -> None:
        if refuse:
            raise Unservable(refuse)

    app = typer.Typer()
    add_commands(app, prove)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        result = CliRunner().invoke(app, [str(arg) for arg in args])
    finally:
        signal.signal(signal.SIGTERM, handler)
    return result.exit_code, result.stdout, result.stderr


def test_split_and_inspect(save: Save, tmp_path: Path) -> None:
    code, table, errors = run("split", save(), "--layers", "0-2,3", "--out", tmp_path / "out")
    assert (code, errors) == (0, "")
    assert "0-2" in table and "share" in table
    code, text, errors = run("inspect", tmp_path / "out" / "stage-1", "--json")
    assert (code, errors) == (0, "")
    assert json.loads(text)["first_layer"] == 3
    code, text, _ = run("inspect", tmp_path / "out" / "stage-1")
    assert code == 0 and "have their checksums" in text


def test_json(save: Save, tmp_path: Path) -> None:
    code, text, _ = run("split", save(), "--stages", 2, "--out", tmp_path / "out", "--json", "--dtype", "bfloat16")
    assert code == 0
    assert [(m["stage"], m["dtype"]) for m in json.loads(text)] == [(0, "bfloat16"), (1, "bfloat16")]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--stages", 5], "5 stages need 5 layers"),
        (["--layers", "0-1,3"], "layer 2 is in no range"),
        (["--layers", "0-2,2-3"], "layer 2 is in two ranges"),
        (["--layers", "0-3", "--stages", 2], "give one of them"),
    ],
)
def test_errors_are_one_line(save: Save, tmp_path: Path, args: list[object], says: str) -> None:
    code, text, errors = run("split", save(), "--out", tmp_path / "out", *args)
    assert (code, text) == (1, "")
    assert errors.startswith("error: ") and says in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_refusal_is_shown_as_it_is(save: Save, tmp_path: Path) -> None:
    code, _, errors = run("split", save(), "--stages", 2, "--out", tmp_path / "out", refuse="no [/such] " + "thing " * 40)
    assert code == 1
    assert errors == "error: no [/such] " + "thing " * 40 + "\n"


def test_damaged_shard(save: Save, tmp_path: Path) -> None:
    run("split", save(), "--stages", 2, "--out", tmp_path / "out")
    weights = tmp_path / "out" / "stage-1" / WEIGHTS
    os.truncate(weights, 1000)
    code, _, errors = run("inspect", weights.parent)
    assert code == 1 and "copy the shard again" in errors
    assert run("inspect", tmp_path)[0] == 1


def test_neither_stages_nor_layers(save: Save, tmp_path: Path) -> None:
    assert run("split", save(), "--out", tmp_path / "out")[0] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_midway(save: Save, tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import os, sys, typer\nimport weights_tools.split as split\nfrom weights_tools.cli import add_commands\n"
        "write = split.write_shard\n"
        "def shard(folder, *args):\n"
        f"    if folder.name == 'stage-1': os.kill(os.getpid(), {int(number)})\n"
        "    return write(folder, *args)\n"
        "split.write_shard = shard\napp = typer.Typer()\nadd_commands(app, lambda _: None)\napp(sys.argv[1:])"
    )
    args = ["split", str(save()), "--stages", "3", "--out", str(tmp_path / "new" / "out")]
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; nothing was written\n")
    assert not (tmp_path / "new").exists()


def test_stage_0_alone_faces_clients(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(pocket.path(), folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert run("split", folder, "--stages", 2, "--out", tmp_path / "out")[0] == 0
    first, second = ({path.name: path for path in (tmp_path / "out" / f"stage-{stage}").iterdir()} for stage in range(2))
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"} <= set(first)
    assert set(second) == {"config.json", "model.safetensors", "shard.json"}
    assert first["chat_template.jinja"].read_text() == "{{ messages }}"
    stored = json.loads(first["tokenizer.json"].read_text())
    assert stored["model"]["vocab"] == json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
