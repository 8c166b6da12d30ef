"""Kubernetes: a StatefulSet in which pod K runs stage K, and what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ring.deploy.container import DOCKERFILE, STOP_S, USER, to_yaml
from weights_tools.ringfile import Machine, RingFile, RingFileError, to_toml

PORT = 5600
SHARDS, KEYS, SECRET, CONFIG = "/var/lib/ring/shards", "/etc/ring/keys", "/run/ring-keys", "/etc/ring/config"
HEAD = """\
# A ring of {stages} pods, ring-0 to ring-{last}; pod K runs stage K. Its keys are a Secret that you make once:
#   ring keys new ring-keys {nodes} --client laptop
#   for pod in {pods}; do tar -C ring-keys -cf $pod.tar $pod; done
#   kubectl create secret generic ring-keys {files}
# Then: kubectl apply -f ring.yaml
# Clients reach the head at ring-head:{clients}; from outside: kubectl port-forward service/ring-head {clients}
"""


def kubernetes_files(ring: RingFile, image: str, storage: str) -> dict[str, str]:
    """File names and contents. `storage` is the size of each pod's disk, such as `20Gi`."""
    pods = [f"ring-{stage}" for stage in range(ring.stages)]
    clients = urlsplit(ring.clients).port or 0
    head = HEAD.format(
        stages=ring.stages,
        last=ring.stages - 1,
        nodes=" ".join(f"--node {pod}" for pod in pods),
        pods=" ".join(pods),
        files=" ".join(f"--from-file={pod}.tar" for pod in pods),
        clients=clients,
    )
    objects = [config_map(ring, pods), headless(clients), head_service(clients), stateful_set(ring, image, storage, clients)]
    return {"Dockerfile": DOCKERFILE, "ring.yaml": head + to_yaml(*objects)}


def config_map(ring: RingFile, pods: list[str]) -> dict[str, Any]:
    """The same ring.toml with pods for machines: their names and addresses are Kubernetes' to choose."""
    machines = [in_pod(ring.at(stage), pod) for stage, pod in enumerate(pods)]
    inside = msgspec.structs.replace(
        ring,
        machines=machines,
        clients=f"tcp://0.0.0.0:{urlsplit(ring.clients).port}",
        shards=Path(SHARDS),
        keys=Path(KEYS),
        insecure=False,
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "ring", "labels": labels()},
        "data": {"ring.toml": to_toml(inside)},
    }


def in_pod(machine: Machine, pod: str) -> Machine:
    """A machine as its pod."""
    return msgspec.structs.replace(machine, name=pod, address=f"tcp://{pod}.ring:{PORT}", listen=f"tcp://0.0.0.0:{PORT}")


def headless(clients: int) -> dict[str, Any]:
    """Gives each pod its name. Pods find each other before they are ready, as none is without the others."""
    ports = [{"name": "ring", "port": PORT}, {"name": "clients", "port": clients}]
    return service("ring", {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": labels(), "ports": ports})


def head_service(clients: int) -> dict[str, Any]:
    """Where clients find the head."""
    selector = labels() | {"statefulset.kubernetes.io/pod-name": "ring-0"}
    return service("ring-head", {"selector": selector, "ports": [{"name": "clients", "port": clients}]})


def service(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A Service."""
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels()}, "spec": spec}


def labels() -> dict[str, str]:
    """What all of it is found by."""
    return {"app.kubernetes.io/name": "ring"}


def stateful_set(ring: RingFile, image: str, storage: str, clients: int) -> dict[str, Any]:
    """The nodes: each with its own disk, on which its stage is fetched once, and its own keys out of the Secret."""
    locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    pod = {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    mounts = {
        "config": {"name": "config", "mountPath": CONFIG, "readOnly": True},
        "secret": {"name": "secret", "mountPath": SECRET, "readOnly": True},
        "keys": {"name": "keys", "mountPath": KEYS},
        "shards": {"name": "shards", "mountPath": SHARDS},
        "tmp": {"name": "tmp", "mountPath": "/tmp"},
    }

    def container(name: str, command: list[str], *used: str, **more: Any) -> dict[str, Any]:
        common = {"name": name, "image": image, "command": command, "env": [pod], "securityContext": locked}
        return common | {"volumeMounts": [mounts[each] for each in used]} | more

    there = f'test -e "{SHARDS}/stage-${{POD##*-}}/shard.json"'
    fetch = f'{there} || exec ring fetch --config {CONFIG}/ring.toml --name "$POD"'
    node = ["ring", "node", "--config", f"{CONFIG}/ring.toml", "--name", "$(POD)"]
    spec = {
        "terminationGracePeriodSeconds": STOP_S,
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [apart()]}},
        "initContainers": [
            container("keys", ["sh", "-c", f'umask 077 && tar -xf "{SECRET}/$POD.tar" -C {KEYS}'], "secret", "keys"),
            container("fetch", ["sh", "-c", fetch], "config", "shards", "tmp"),
        ],
        "containers": [
            container(
                "node",
                node,
                *("config", "keys", "shards", "tmp"),
                ports=[{"name": "ring", "containerPort": PORT}, {"name": "clients", "containerPort": clients}],
            )
        ],
        "volumes": [
            {"name": "config", "configMap": {"name": "ring"}},
            {"name": "secret", "secret": {"secretName": "ring-keys"}},
            {"name": "keys", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": storage}}}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "ring", "labels": labels()},
        "spec": {
            "serviceName": "ring",
            "replicas": ring.stages,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels()},
            "template": {"metadata": {"labels": labels()}, "spec": spec},
            "volumeClaimTemplates": [{"metadata": {"name": "shards"}, "spec": claim}],
        },
    }


def apart() -> dict[str, Any]:
    """Rather one pod a machine: on one, they would only share its memory."""
    term = {"labelSelector": {"matchLabels": labels()}, "topologyKey": "kubernetes.io/hostname"}
    return {"weight": 100, "podAffinityTerm": term}


def check_kubernetes(ring: RingFile) -> None:
    """Raises RingFileError for what a pod cannot do."""
    if Path(ring.model).is_absolute() or ring.model.startswith((".", "~")):
        raise RingFileError(
            f"'model' is the folder {ring.model}, which pods do not have; give a model's name on the Hugging Face Hub"
        )
