"""A compose file with one service for each machine; every machine starts its own."""

from __future__ import annotations

from typing import Any

from ring.deploy.container import DOCKERFILE, STOP_S, USER, to_yaml
from weights_tools.ringfile import Machine, RingFile

HEAD = """\
# On each machine, in a folder with this file, ring.toml, shards/ and keys/ (its own folder of keys only):
#   docker compose up --detach NAME
# Containers use the machine's own network, so that the addresses in ring.toml hold; user {user} must own the keys.
"""


def compose_files(ring: RingFile, image: str) -> dict[str, str]:
    """File names and contents."""
    services = {machine.name: service(machine, image) for machine in ring.machines}
    text = to_yaml({"services": services})
    return {"Dockerfile": DOCKERFILE, "compose.yaml": HEAD.format(user=USER) + text}


def service(machine: Machine, image: str) -> dict[str, Any]:
    """One machine's node: as little may go wrong in it as can be."""
    stage = f"stage-{machine.stage}"
    keys = f"/etc/ring/keys/{machine.name}"
    return {
        "image": image,
        "command": [
            *("node", f"/var/lib/ring/shards/{stage}", "--config", "/etc/ring/ring.toml", "--name", machine.name),
            *("--keys", keys),
        ],
        "network_mode": "host",
        "user": f"{USER}:{USER}",
        "restart": "always",
        "stop_signal": "SIGTERM",
        "stop_grace_period": f"{STOP_S}s",
        "init": True,
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "ulimits": {"core": 0, "nofile": {"soft": 65536, "hard": 65536}},
        "environment": {"HF_HUB_OFFLINE": "1"},
        "volumes": [
            "./ring.toml:/etc/ring/ring.toml:ro",
            f"./keys/{machine.name}:{keys}:ro",
            f"./shards/{stage}:/var/lib/ring/shards/{stage}:ro",
        ],
    }
