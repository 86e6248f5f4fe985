"""The suite leaves the machine as it was: looked at before the first test that may change it, and after the last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.real.conftest import await_that
from tests.real.containers import machine

SETTLE_S = 20.0
"""How long what tests ended may take to be gone, such as a namespace whose last process was killed."""


@pytest.fixture(scope="session", autouse=True)
def _machine_stays_as_it_was(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Processes, cgroups, namespaces, mounts, links, routes, nft rules, directories of runtimes."""
    touching = any(item.get_closest_marker("root") or item.get_closest_marker("real") for item in request.session.items)
    if os.geteuid() != 0 or not touching:
        yield
        return
    own = str(tmp_path_factory.getbasetemp())
    machine.mark()
    before = machine.look(own)
    yield
    with contextlib.suppress(AssertionError):  # what differs is told below
        await_that(lambda: not before.differences(machine.look(own)), "all is as it was", SETTLE_S)
    assert before.differences(machine.look(own)) == []
