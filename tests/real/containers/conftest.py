"""One test node for all tests below; each makes its own pods. Afterwards the machine must be as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real.containers import machine
from tests.real.containers.node import Node, missing, node


@pytest.fixture
def the_node(one_node: Node) -> Iterator[Node]:
    """A real node with containerd, without pods. What the test makes is removed after it."""
    yield one_node
    one_node.clear()


@pytest.fixture(scope="session")
def one_node() -> Iterator[Node]:
    """The node of all tests. The machine is compared before and after it."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    before = machine.look()
    with node() as made:
        yield made
    assert before.differences(machine.look()) == []
