"""One API server for all tests below; each takes a namespace and a node's name of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real.apiserver.cluster import Cluster, cluster, missing


@pytest.fixture(scope="session")
def the_cluster() -> Iterator[Cluster]:
    """A real kube-apiserver."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with cluster() as made:
        yield made
