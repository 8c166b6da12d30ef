"""The image that Compose and Kubernetes run: its Dockerfile, and what both must know of it."""

from __future__ import annotations

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
