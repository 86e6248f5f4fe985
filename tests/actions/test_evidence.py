"""The declarations of captures and of file:quarantine: each parameter wrong in each way, and their examples."""

from __future__ import annotations

from typing import Any

import pytest

from agent.work.memory import KINDS
from stoop.actions.evidence import memory, pcap, snapshot
from stoop.actions.evidence.memory import DEFAULT_REGIONS, REGIONS, MemoryParameters
from stoop.actions.evidence.pcap import PcapParameters
from stoop.actions.evidence.snapshot import SnapshotParameters
from stoop.actions.file import quarantine
from stoop.actions.file.quarantine import QuarantineParameters
from stoop.actions.kubernetes import download, log, sysdig, tcpdump
from stoop.actions.kubernetes.sysdig import SysdigParameters
from stoop.actions.kubernetes.tcpdump import TcpdumpParameters
from stoop.catalogue import CATALOGUE, build
from stoop.rules import load
from stoop.rules.params import check_parameters, typed_parameters
from stoop.spec import (
    Action,
    ActionSpec,
)


@pytest.mark.parametrize("spec", [snapshot.SPEC, memory.SPEC, pcap.SPEC, quarantine.SPEC])
def test_the_example_loads(spec: ActionSpec) -> None:
    catalogue = build([*CATALOGUE.actions.values(), Action(spec=spec)], (), ())
    loaded = load((("example.yaml", spec.example.encode()),), catalogue)
    assert len(loaded.rules) == 1
    changes = spec is quarantine.SPEC
    assert (spec.destroys, spec.reversible, spec.outlives_boot) == (changes, changes, changes)


def test_defaults_pass_their_own_check() -> None:
    taken = typed_parameters(snapshot.SPEC, {})
    assert isinstance(taken, SnapshotParameters)
    assert (taken.freeze_ns, taken.executable_bytes, taken.log_bytes) == (200_000_000, 64 * 2**20, 256 * 2**10)
    kept = typed_parameters(memory.SPEC, {})
    assert isinstance(kept, MemoryParameters)
    assert (kept.kinds, kept.bytes) == (DEFAULT_REGIONS, 256 * 2**20)
    heard = typed_parameters(pcap.SPEC, {"duration": 0})
    assert isinstance(heard, PcapParameters)
    assert (heard.seconds, heard.snaplen, heard.bytes) == (5, 0, 256 * 2**20)
    taken_away = typed_parameters(quarantine.SPEC, {"file": "/tmp/x"})
    assert isinstance(taken_away, QuarantineParameters)
    assert (taken_away.image_files, taken_away.bytes, taken_away.ttl) == (False, 256 * 2**20, "1h")


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
        (pcap.SPEC, {"duration": -1}, "duration", "duration"),
        (pcap.SPEC, {"duration": 3601}, "duration", "3600"),
        (pcap.SPEC, {"duration": "5s"}, "duration", "number"),
        (pcap.SPEC, {"snaplen": 262145}, "snaplen", "262144"),
        (pcap.SPEC, {"max_bytes": "3GiB"}, "max_bytes", "at most 2GiB"),
        (quarantine.SPEC, {"file": "bin/x"}, "file", "must be a full path"),
        (quarantine.SPEC, {"file": 7}, "file", "must be a text"),
        (quarantine.SPEC, {"interpreters": True}, "interpreters", "needs image_files"),
        (quarantine.SPEC, {"interpreters": "yes"}, "interpreters", "true or false"),
        (quarantine.SPEC, {"max_bytes": "0"}, "max_bytes", "at least 1 byte"),
        (log.SPEC, {"tail_lines": -1}, "tail_lines", "tail_lines"),
        (log.SPEC, {"tail_lines": "all"}, "tail_lines", "number"),
        (download.SPEC, {}, "file", "required"),
        (download.SPEC, {"file": ""}, "file", "must not be empty"),
        (download.SPEC, {"file": ["/etc/passwd"]}, "file", "text"),
        (tcpdump.SPEC, {"duration": -1}, "duration", "duration"),
        (tcpdump.SPEC, {"duration": "5s"}, "duration", "number"),
        (tcpdump.SPEC, {"snaplen": -1}, "snaplen", "snaplen"),
        (tcpdump.SPEC, {"snaplen": "all"}, "snaplen", "number"),
        (tcpdump.SPEC, {"image": 1}, "image", "text"),
        (sysdig.SPEC, {"duration": 31}, "duration", "30"),
        (sysdig.SPEC, {"duration": -1}, "duration", "duration"),
        (sysdig.SPEC, {"duration": "5s"}, "duration", "number"),
        (sysdig.SPEC, {"buffer_size": 127}, "buffer_size", "128"),
        (sysdig.SPEC, {"buffer_size": "2KiB"}, "buffer_size", "number"),
        (sysdig.SPEC, {"scope": "cluster"}, "scope", "pod or node"),
        (sysdig.SPEC, {"image": []}, "image", "text"),
        (quarantine.SPEC, {"file": "/x", "image_files": "yes"}, "image_files", "true or false"),
        (quarantine.SPEC, {"file": "/x", "max_bytes": "2GiB"}, "max_bytes", "at most 1GiB"),
        (quarantine.SPEC, {"file": "/x", "ttl": "soon"}, "ttl", "is not a duration"),
    ],
)
def test_wrong_parameters_are_refused(spec: ActionSpec, given: dict[str, Any], parameter: str, said: str) -> None:
    params, faults = check_parameters(spec, given)
    assert params is None
    assert [fault.parameter for fault in faults] == [parameter]
    assert said in faults[0].message


def test_a_capture_of_talons_is_bounded() -> None:
    for given, seconds in (({}, 5), ({"duration": 0}, 5), ({"duration": 86400}, 3600), ({"duration": 30}, 30)):
        params = typed_parameters(tcpdump.SPEC, given)
        assert isinstance(params, TcpdumpParameters)
        assert params.seconds == seconds
    heard = typed_parameters(sysdig.SPEC, {"duration": 0, "buffer_size": 10**6})
    assert isinstance(heard, SysdigParameters)
    assert (heard.seconds, heard.snaplen) == (5, 65_000)


def test_the_end_of_a_log_is_shown_within_bounds() -> None:
    assert log.shown(b"one\ntwo\n") == {"log": ["one", "two"]}
    assert log.shown(b"\xff\x1b[0m\xe2\x80\xae") == {"log": ["\\xff\\x1b[0m\\u202e"]}
    told = log.shown(b"\x00" * log.TELL_BYTES)
    assert told == {"log": ["\\x00" * (log.TELL_BYTES // 4)], "log_cut": True}
    assert log.shown(b"a\n" + "\u00e4".encode() * log.TELL_BYTES)["log"] == ["\u00e4" * (log.TELL_BYTES // 2)]
    told = log.shown((b"\x00" * 99 + b"\n") * 164)
    lines = told["log"]
    assert isinstance(lines, list)
    assert set(lines) == {"\\x00" * 99}
    assert (sum(len(line) + 1 for line in lines) <= log.TELL_BYTES, told["log_cut"]) == (True, True)
