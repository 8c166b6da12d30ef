"""A systemd unit for each machine."""

from __future__ import annotations

from weights_tools.ringfile import RingFile

UNIT = """\
[Unit]
Description=ring node {name}: {what}
Documentation=man:systemd.service(5)
Wants=network-online.target
After=network-online.target
# Start it again and again, however often it fails: the rest of the ring waits for it.
StartLimitIntervalSec=0

[Service]
Type=exec
User=ring
Group=ring
WorkingDirectory=/var/lib/ring
StateDirectory=ring
ExecStart={ring} node --config /etc/ring/ring.toml --name {name}
Environment=HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
Restart=always
RestartSec=1
# SIGTERM lets stage 0 finish its streams, for 60 s at most.
KillSignal=SIGTERM
TimeoutStopSec=75
# Core dumps would hold keys and prompts.
LimitCORE=0
LimitNOFILE=65536
# The kernel should rather end something else.
OOMScoreAdjust=-200

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
{devices}
PrivateMounts=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
# No MemoryDenyWriteExecute: the stage's kernels, and torch's, are compiled when it starts.

[Install]
WantedBy=multi-user.target
"""


def systemd_files(ring: RingFile, program: str) -> dict[str, str]:
    """File names and contents. `program` is where `ring` is on the machines."""
    files = {}
    for machine in ring.machines:
        what = f"{'spare for ' if machine.spare else ''}stage {machine.stage} of {ring.stages}, {ring.model}"
        devices = "PrivateDevices=yes" if machine.device == "cpu" else f"# No PrivateDevices: it computes on {machine.device}."
        unit = UNIT.format(name=machine.name, what=what.replace("%", "%%"), ring=program, devices=devices)
        files[f"{machine.name}/ring-node.service"] = unit
    return files
