"""docs/deploy.md: its ring.toml is one, and its commands are ones that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from ring.cli import app
from weights_tools.ringfile import read_ring_file

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
COMMANDS = [line for line in PAGE.splitlines() if re.match(r"    (sudo -u ring (-H )?/opt/ring/bin/)?ring [a-z]", line)]


def test_the_ring_file(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "ring.toml").write_text(text)
    ring = read_ring_file(tmp_path / "ring.toml")
    assert [machine.name for machine in ring.machines] == ["alpha", "beta", "gamma"]
    assert [str(ring.shards), str(ring.keys)] == ["/var/lib/ring/shards", "/etc/ring/keys"]


def parse(words: list[str]) -> None:
    """Take a command line apart as the program does, without running it; raises for what it does not know."""
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line: str) -> None:
    parse(shlex.split(re.sub(r"^    (.*bin/)?ring ", "", line)))


def test_a_wrong_command_is_seen() -> None:
    with pytest.raises(Exception, match="--nme"):
        parse(["node", "--config", "ring.toml", "--nme", "alpha"])


def test_all_were_found() -> None:
    assert len(COMMANDS) > 10
