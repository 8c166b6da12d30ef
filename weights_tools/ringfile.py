"""`ring.toml`: one file for a whole ring, the same on every machine."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

CLIENTS = "tcp://127.0.0.1:5555"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `ring keys` names its folders


class RingFileError(ValueError):
    """A ring.toml that cannot be used; the message is one sentence that says what to do."""


class Machine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One machine: `name` is also that of its folder of keys, `address` is where the others reach it.

    It listens at all its interfaces, at the address's port, unless `listen` says otherwise. `kv_memory` is a size such as
    `4G`. A `spare` waits beside the stage that it names.
    """

    name: str
    stage: Annotated[int, msgspec.Meta(ge=0)]
    address: str
    listen: str | None = None
    layers: str | None = None
    threads: Annotated[int, msgspec.Meta(ge=1)] | None = None
    kv_memory: str | None = None
    device: str = "cpu"
    spare: bool = False


class RingFile(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What ring.toml says. `model` is a name on the Hugging Face Hub or a checkpoint's folder; `clients` is where stage 0
    serves clients; `shards` holds this machine's stage-K, and `keys` its folder of keys under its name."""

    model: str
    machines: list[Machine]
    revision: str = "main"
    dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    clients: str = CLIENTS
    shards: Path = Path("shards")
    keys: Path | None = None
    insecure: bool = False

    @property
    def stages(self) -> int:
        """How many."""
        return max(machine.stage for machine in self.machines) + 1

    @property
    def layers(self) -> str | None:
        """The cut as `ring split --layers` takes it, if the file says where to cut."""
        ranges = [self.at(stage).layers for stage in range(self.stages)]
        return ",".join(layers for layers in ranges if layers) or None

    def at(self, stage: int) -> Machine:
        """The machine that runs a stage, counted round the ring."""
        return next(m for m in self.machines if m.stage == stage % self.stages and not m.spare)

    def machine(self, name: str) -> Machine:
        """The machine of that name.

        Raises:
            RingFileError: there is none.
        """
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise RingFileError(f"there is no machine '{name}' in the ring file; it has {', '.join(m.name for m in self.machines)}")

    def shard(self, machine: Machine) -> Path:
        """Where a machine has its shard."""
        return self.shards / f"stage-{machine.stage}"

    def keys_of(self, machine: Machine) -> Path | None:
        """Where a machine has its keys."""
        return self.keys and self.keys / machine.name


def read_ring_file(path: Path) -> RingFile:
    """Read and check a ring.toml; its relative folders count from where it lies.

    Raises:
        RingFileError: no such file, no TOML, an unknown or wrong field, or machines that make no ring.
    """
    try:
        ring = msgspec.toml.decode(path.read_bytes(), type=RingFile, dec_hook=decode_path)
    except OSError as error:
        raise RingFileError(f"{path} cannot be read ({error.strerror})") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RingFileError(f"{path}: {explain(str(error))}") from None
    try:
        check(ring)
    except RingFileError as error:
        raise RingFileError(f"{path}: {error}") from None
    folder = path.resolve().parent
    ring.shards = folder / ring.shards.expanduser()
    ring.keys = ring.keys and folder / ring.keys.expanduser()
    return ring


def to_toml(ring: RingFile) -> str:
    """A ring file as text; JSON's strings and numbers are TOML's too."""
    fields = msgspec.to_builtins(ring, enc_hook=str)
    machines = fields.pop("machines")
    lines = [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in fields.items()]
    for machine in machines:
        lines += ["", "[[machines]]", *(f"{key} = {msgspec.json.encode(value).decode()}" for key, value in machine.items())]
    return "\n".join(lines) + "\n"


def decode_path(kind: type, value: object) -> Path:
    """A folder is written as a string."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise msgspec.ValidationError(f"Expected a folder's name, got {value!r}")


def explain(error: str) -> str:
    """What msgspec says, with `machines[1].stage` where it says `$.machines[1].stage`."""
    return re.sub(r" - at `\$\.?(.*?)`$", lambda match: f" (in {match[1]})" if match[1] else "", error)


def check(ring: RingFile) -> None:
    """Raises RingFileError unless the machines make one ring."""
    if not ring.machines:
        raise RingFileError("it names no machine; write a [[machines]] section for each")
    names = [machine.name for machine in ring.machines]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise RingFileError(f"two machines are called '{twice[0]}'; give each a name of its own")
    running = Counter(machine.stage for machine in ring.machines if not machine.spare)
    stages = max(machine.stage for machine in ring.machines) + 1
    for stage in range(stages):
        if running[stage] != 1:
            what = "no machine runs" if not running[stage] else f"{running[stage]} machines run"
            raise RingFileError(
                f"{what} stage {stage}; number the stages from 0, one machine each (others can be spare = true)"
            )
    for machine in ring.machines:
        if NAME.fullmatch(machine.name) is None:
            raise RingFileError(f"'{machine.name}' is no name for a machine; use letters, digits, dots and dashes")
        if machine.spare and machine.stage == 0:
            raise RingFileError(f"'{machine.name}' cannot be a spare for stage 0, whose address clients know")
        check_address(machine.address, f"the address of '{machine.name}'")
        if machine.listen is not None:
            check_address(machine.listen, f"'listen' of '{machine.name}'")
        if machine.kv_memory is not None:
            parse_size(machine.kv_memory)
        if machine.layers is not None and machine.spare:
            raise RingFileError(f"'{machine.name}' is a spare and has the layers of stage {machine.stage}; say them there")
    check_address(ring.clients, "'clients'")
    addresses = Counter(machine.address for machine in ring.machines)
    if shared := [address for address, count in addresses.items() if count > 1]:
        raise RingFileError(f"two machines have the address {shared[0]}; give each its own host or port")
    cut = [machine.layers is not None for machine in ring.machines if not machine.spare]
    if any(cut) and not all(cut):
        raise RingFileError("some machines have 'layers' and some have not; say them for every stage or for none")


def check_address(address: str, whose: str) -> None:
    """Raises RingFileError unless it is one like tcp://HOST:PORT."""
    try:
        parts = urlsplit(address)
        fine = parts.scheme == "tcp" and bool(parts.hostname) and parts.port is not None and not parts.path
    except ValueError:
        fine = False
    if not fine:
        raise RingFileError(f"{whose} is '{address}'; write it as tcp://HOST:PORT")


def parse_size(text: str) -> int:
    """A size such as `4G`, `512M` or a number of bytes.

    Raises:
        RingFileError: it is none.
    """
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number, unit = text.strip().upper().removesuffix("B").removesuffix("I"), 1
    if number[-1:] in units:
        unit, number = units[number[-1]], number[:-1]
    try:
        size = int(float(number) * unit)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise RingFileError(f"'{text}' is not a size such as 4G or 512M")
    return size
