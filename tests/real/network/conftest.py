"""A node, a pod on it and the hands, for tests of the network."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from agent.node.network import Network, open_network
from tests.real.conftest import Spawn
from tests.real.netlab import Lab, Pod


@pytest.fixture
def lab(spawn: Spawn) -> Iterator[Lab]:
    with contextlib.ExitStack() as keep:
        yield Lab(spawn, keep)


@pytest.fixture
def pod(lab: Lab) -> Pod:
    return lab.pod()


@pytest.fixture
async def network(lab: Lab) -> AsyncIterator[Network]:
    async with open_network(lab.pid) as made:
        assert made.unavailable == ""
        yield made
