"""The image that Compose and Kubernetes run: its Dockerfile, and what both must know of it."""

from __future__ import annotations

import yaml

USER = 10001
STOP_S = 75
"""SIGTERM lets stage 0 finish its streams, for 60 s at most."""

DOCKERFILE = f"""\
# Build it from a checkout of ring:  docker build -f Dockerfile -t IMAGE PATH-TO-RING
FROM python:3.12-slim

# torch first and from its own index: the build for CPUs is a tenth of the size of the other.
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c /tmp/constraints.txt torch
COPY . /tmp/ring
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c /tmp/constraints.txt /tmp/ring \\
    && rm -rf /tmp/ring /tmp/constraints.txt

RUN groupadd --gid {USER} ring && useradd --uid {USER} --gid {USER} --no-create-home --home-dir /tmp ring \\
    && mkdir -p /etc/ring /var/lib/ring && chown ring:ring /var/lib/ring
USER {USER}:{USER}
WORKDIR /var/lib/ring
ENV HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
STOPSIGNAL SIGTERM
ENTRYPOINT ["ring"]
CMD ["node", "--help"]
"""


class Dumper(yaml.SafeDumper):
    """YAML for people: a text of several lines stands as such, and what is the same is written again."""

    def ignore_aliases(self, data: object) -> bool:
        """No anchors."""
        return True


def represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    """A string."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, represent_text)


def to_yaml(*documents: object) -> str:
    """One or several documents, their fields in the order given."""
    return yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=120)
