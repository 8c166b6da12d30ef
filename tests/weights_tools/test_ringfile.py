from __future__ import annotations

from pathlib import Path

import pytest

from ring.config import configure
from ring.start import NodeOptions
from weights_tools.ringfile import RingFileError, read_ring_file

GOOD = """
model = "Qwen/Qwen2-7B-Instruct"
dtype = "bfloat16"
keys = "ring-keys"
clients = "tcp://0.0.0.0:5555"

[[machines]]
name = "alpha"
stage = 0
address = "tcp://alpha:5600"
layers = "0-9"

[[machines]]
name = "beta"
stage = 1
address = "tcp://beta:5600"
layers = "10-27"
threads = 4
kv_memory = "2G"

[[machines]]
name = "delta"
stage = 1
address = "tcp://delta:5600"
spare = true
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ring.toml"
    path.write_text(GOOD)
    return path


def test_what_each_node_is_told(file: Path) -> None:
    ring = read_ring_file(file)
    given = NodeOptions(shard=Path(), listen="", next="")
    alpha, beta, delta = (configure(given, ring, name) for name in ("alpha", "beta", "delta"))
    assert (ring.stages, ring.layers) == (2, "0-9,10-27")
    assert (alpha.listen, alpha.next, alpha.clients) == ("tcp://0.0.0.0:5600", "tcp://beta:5600", "tcp://0.0.0.0:5555")
    assert (beta.next, beta.threads, beta.kv_memory, beta.spare) == ("tcp://alpha:5600", 4, 2 << 30, False)
    assert (delta.next, delta.advertise, delta.spare) == ("tcp://alpha:5600", "tcp://delta:5600", True)
    assert beta.shard == delta.shard == file.parent / "shards" / "stage-1"
    assert beta.keys == file.parent / "ring-keys" / "beta"
    assert not alpha.insecure


def test_the_command_line_goes_first(file: Path) -> None:
    given = NodeOptions(shard=Path("/else"), listen="", next="", threads=1, kv_memory=7, keys=Path("/keys"))
    beta = configure(given, read_ring_file(file), "beta")
    assert (beta.shard, beta.threads, beta.kv_memory, beta.keys) == (Path("/else"), 1, 7, Path("/keys"))


def test_loopback_is_listened_at_alone(file: Path) -> None:
    file.write_text(GOOD.replace("tcp://beta:5600", "tcp://127.0.0.1:5601"))
    assert configure(NodeOptions(Path(), "", ""), read_ring_file(file), "beta").listen == "tcp://127.0.0.1:5601"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name = "beta"', 'nam = "beta"', r"unknown field `nam` \(in machines\[1\]\)"),
        ('name = "beta"', "", "missing required field `name`"),
        ('name = "beta"', 'name = "alpha"', "two machines are called 'alpha'"),
        ('name = "beta"', 'name = "a b"', "no name for a machine"),
        ("stage = 1\naddress = \"tcp://beta", "stage = 0\naddress = \"tcp://beta", "2 machines run stage 0"),
        ("stage = 1", "stage = 2", "no machine runs stage 1"),
        ("stage = 1", 'stage = "1"', "Expected `int`"),
        ("stage = 1", "stage = -1", "Expected `int` >= 0"),
        ("tcp://beta:5600", "beta:5600", "the address of 'beta' is 'beta:5600'; write it as tcp"),
        ("tcp://beta:5600", "tcp://beta", "write it as tcp"),
        ("tcp://beta:5600", "tcp://beta:99999", "write it as tcp"),
        ("tcp://beta:5600", "tcp://alpha:5600", "two machines have the address"),
        ("tcp://0.0.0.0:5555", "here", "'clients' is 'here'"),
        ('kv_memory = "2G"', 'kv_memory = "lots"', "'lots' is not a size"),
        ('layers = "0-9"', "", "some machines have 'layers'"),
        ('dtype = "bfloat16"', 'dtype = "int4"', r"Invalid enum value 'int4' \(in dtype\)"),
        ('keys = "ring-keys"', "keys = 3", "a folder's name"),
        ('model = "Qwen/Qwen2-7B-Instruct"', "", "missing required field `model`"),
        ("spare = true", "spare = true\nlayers = \"1\"", "is a spare and has the layers"),
        ("[[machines]]", "[[machines", "ring.toml: "),
        (GOOD[GOOD.index("[[") :], "machines = []", "names no machine"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence(file: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(RingFileError, match=says) as error:
        read_ring_file(file)
    assert "\n" not in str(error.value) and "$" not in str(error.value)


def test_a_spare_for_stage_0(file: Path) -> None:
    file.write_text(GOOD + '[[machines]]\nname = "e"\nstage = 0\naddress = "tcp://e:1"\nspare = true')
    with pytest.raises(RingFileError, match="cannot be a spare for stage 0"):
        read_ring_file(file)


def test_no_such_file_or_machine(file: Path) -> None:
    with pytest.raises(RingFileError, match="cannot be read"):
        read_ring_file(file.parent / "absent.toml")
    with pytest.raises(RingFileError, match="it has alpha, beta, delta"):
        read_ring_file(file).machine("omega")
