"""What all tests share."""

import os

import pytest
import torch

from ring import launch

torch.set_num_threads(1)  # the tensors are tiny and the cores shared: more threads only wait for each other

# Tests that run beside each other (pytest -n) take their ports from ranges of their own.
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_first, _last = launch.PORTS
launch.PORTS = (_first + _worker % 4 * ((_last - _first) // 4), _first + (_worker % 4 + 1) * ((_last - _first) // 4))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Splits are kept with the tests, not with the user's own."""
    os.environ["RING_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
