"""The declarations of evidence:snapshot and evidence:memory: each parameter wrong in each way, and their examples."""

from __future__ import annotations

from typing import Any

import pytest

from agent.work.memory import KINDS
from stoop.actions.evidence import memory, snapshot
from stoop.actions.evidence.memory import DEFAULT_REGIONS, REGIONS, MemoryParameters
from stoop.actions.evidence.snapshot import SnapshotParameters
from stoop.catalogue import CATALOGUE, build
from stoop.rules import load
from stoop.rules.params import check_parameters, typed_parameters
from stoop.spec import (
    Action,
    ActionSpec,
)


@pytest.mark.parametrize("spec", [snapshot.SPEC, memory.SPEC])
def test_the_example_loads(spec: ActionSpec) -> None:
    catalogue = build([*CATALOGUE.actions.values(), Action(spec=spec)], (), ())
    loaded = load((("example.yaml", spec.example.encode()),), catalogue)
    assert len(loaded.rules) == 1
    assert not spec.destroys
    assert not spec.reversible


def test_defaults_pass_their_own_check() -> None:
    taken = typed_parameters(snapshot.SPEC, {})
    assert isinstance(taken, SnapshotParameters)
    assert (taken.freeze_ns, taken.executable_bytes, taken.log_bytes) == (200_000_000, 64 * 2**20, 256 * 2**10)
    kept = typed_parameters(memory.SPEC, {})
    assert isinstance(kept, MemoryParameters)
    assert (kept.kinds, kept.bytes) == (DEFAULT_REGIONS, 256 * 2**20)


def test_the_worker_knows_the_same_regions() -> None:
    assert tuple(KINDS) == REGIONS
    assert set(DEFAULT_REGIONS) <= set(REGIONS)


@pytest.mark.parametrize(
    ("spec", "given", "parameter", "said"),
    [
        (snapshot.SPEC, {"scope": "pod"}, "scope", "invalid enum value 'pod'"),
        (snapshot.SPEC, {"freeze_for": "6s"}, "freeze_for", "at most 5s"),
        (snapshot.SPEC, {"freeze_for": "200"}, "freeze_for", "is not a duration"),
        (snapshot.SPEC, {"freeze_for": 200}, "freeze_for", "must be a text"),
        (snapshot.SPEC, {"freeze_for": "-1s"}, "freeze_for", "is not a duration"),
        (snapshot.SPEC, {"executables": "2GiB"}, "executables", "at most 1GiB"),
        (snapshot.SPEC, {"executables": "some"}, "executables", "size"),
        (snapshot.SPEC, {"log": "65MiB"}, "log", "at most 64MiB"),
        (snapshot.SPEC, {"changes": "yes"}, "changes", "true or false"),
        (memory.SPEC, {"scope": "session"}, "scope", "invalid enum value 'session'"),
        (memory.SPEC, {"regions": ["heap", "stak"]}, "regions", "must be unbacked or heap"),
        (memory.SPEC, {"regions": [""]}, "regions", "must not be empty"),
        (memory.SPEC, {"regions": "heap"}, "regions", "a list of texts"),
        (memory.SPEC, {"max_bytes": "65GiB"}, "max_bytes", "at most 64GiB"),
        (memory.SPEC, {"max_bytes": "0"}, "max_bytes", "at least 4096 bytes"),
        (memory.SPEC, {"max_bytes": "lots"}, "max_bytes", "size"),
    ],
)
def test_wrong_parameters_are_refused(spec: ActionSpec, given: dict[str, Any], parameter: str, said: str) -> None:
    params, faults = check_parameters(spec, given)
    assert params is None
    assert [fault.parameter for fault in faults] == [parameter]
    assert said in faults[0].message
