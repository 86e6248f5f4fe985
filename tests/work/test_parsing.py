"""What workers parse and say, without any target: tables of sockets, capability sets, frames, messages, paths."""

from __future__ import annotations

import ipaddress
import os
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.jobs import (
    MAX_MESSAGE,
    JobError,
    Progress,
    Result,
    Start,
    decode_from_nursery,
    decode_from_worker,
    decode_job,
    decode_to_nursery,
    encode,
)
from agent.work import cgroups
from agent.work.aside import STEP_BYTES, Step
from agent.work.files import look, open_beneath, pieces, read_at
from agent.work.overlay import parse_mountinfo
from agent.work.process import capabilities, inode_of
from agent.work.sockets import address, sockets
from agent.work.telling import AnyFrame, Begin, Done, End, Gap, Lack, Listener, Phase, Piece, Teller, Whole
from agent.work.unixpeers import name_of


def printed(host: str, port: int) -> bytes:
    """An address as the kernel prints it: words of 4 bytes as numbers of this machine."""
    raw = ipaddress.ip_address(host).packed
    words = struct.unpack(f"={len(raw) // 4}I", raw)
    return b"%s:%04X" % (b"".join(b"%08X" % word for word in words), port)


A, B, OTHER, NONE = (
    printed("127.0.0.1", 8080),
    printed("127.0.0.1", 50000),
    printed("10.0.0.2", 50001),
    printed("0.0.0.0", 0),
)
FAR = printed("8.8.8.8", 443)
REST = b"00000000:00000000 00:00000000 00000000"
HEADER = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
TCP = HEADER + (
    b"   0: %s %s 0A %s     0        0 10 1 0 100 0 0 10 0\n" % (A, NONE, REST)
    + b"   1: %s %s 01 %s  1000        0 11 1 0 20 4 30 10 -1\n" % (A, B, REST)
    + b"   2: %s %s 01 %s  1000        0 12 1 0 20 4 30 10 -1\n" % (B, A, REST)
    + b"   3: %s %s 01 %s  1000        0 13 1 0 20 4 30 10 -1\n" % (OTHER, FAR, REST)
    + b"   5: %s no 01 0:0 0:0 0 0 0 11\nnonsense\n   4: zz yy xx 00 00 00 00 0 0 abc\n" % A
)
UNIX = b"""Num       RefCount Protocol Flags    Type St Inode Path
0000: 00000002 00000000 00010000 0001 01 20 /run/a b\n0000: 00000003 00000000 00000000 0001 03 21
0000: 00000003 00000000 00000000 0002 01 22 @abstract\xff
"""


def test_addresses() -> None:
    for host in ("127.0.0.1", "10.1.2.3", "255.255.255.255"):
        assert address(printed(host, 8080)) == f"{host}:8080"
    for host in ("::1", "2001:db8::a000:1"):
        assert address(printed(host, 443)) == f"[{host}]:443"
    if sys.byteorder == "little":
        assert address(b"0100007F:1F90") == "127.0.0.1:8080"
    for wrong in (b"", b"01:02", b"zz:1", b"0100007F:", b"0100007F"):
        with pytest.raises(ValueError):
            address(wrong)


def test_peers_in_one_namespace() -> None:
    found = {row["inode"]: row for row in sockets({"tcp": TCP}, {11: [(1, 3)], 12: [(2, 4)], 13: [(2, 5)]}, {}, {})}
    assert sorted(found) == [11, 12, 13]
    assert found[11]["peer"] == 12
    assert found[11]["peer_held_by"] == [(2, 4)]
    assert found[12]["peer"] == 11
    assert "peer" not in found[13]
    assert found[13]["remote"] == "8.8.8.8:443"
    listening = sockets({"tcp": TCP}, {10: [(1, 2)]}, {}, {})
    assert [(row["state"], row["held_by"]) for row in listening] == [("listen", [(1, 2)])]


def test_unix_sockets() -> None:
    holders = {20: [(1, 1)], 21: [(1, 2)], 22: [(1, 3)], 23: [(1, 4)]}
    found = sockets({"unix": UNIX}, holders, {21: 22, 22: 99, 23: 0}, {99: "/run/node"})
    assert [(row["path"], row["state"], row["type"]) for row in found] == [
        ("/run/a b", "listen", "stream"),
        ("", "connected", "stream"),
        ("@abstract\\xff", "unconnected", "datagram"),
    ]
    assert [(row.get("peer"), row.get("peer_held_by"), row.get("peer_path")) for row in found] == [
        (None, None, None),
        (22, [(1, 3)], None),
        (99, None, "/run/node"),
    ]


def test_names_of_unix_sockets() -> None:
    assert name_of(b"/run/a b\0") == "/run/a b"
    assert name_of(b"\0hidden\xff") == "@hidden\\xff"


@given(st.binary(max_size=400))
def test_any_table_is_read(table: bytes) -> None:
    holders = {inode: [(1, 1)] for inode in range(30)}
    for kind in ("tcp", "tcp6", "udp", "unix"):
        for row in sockets({kind: HEADER + table}, holders, {}, {}):
            assert row["inode"] in holders
    assert all(mount.point is not None for mount in parse_mountinfo(table))


def test_capability_sets() -> None:
    assert capabilities(0) == []
    assert capabilities(1 << 21 | 1) == ["CAP_CHOWN", "CAP_SYS_ADMIN"]
    assert capabilities(1 << 40 | 1 << 41 | 1 << 63) == ["CAP_CHECKPOINT_RESTORE", "41", "63"]


def test_inodes_of_sockets() -> None:
    assert inode_of(b"socket:[123]") == 123
    for other in (b"socket:[x]", b"/tmp/socket:[1]", b"socket:[1] (deleted)", b"pipe:[1]", b""):
        assert inode_of(other) == 0


FRAMES: list[AnyFrame] = [
    Whole("a", b"\xff" * 300, {"pid": 1}),
    Begin("b", 5, {}),
    Piece(b"abc"),
    Gap(2),
    End(),
    Lack("x", "why"),
    Phase("volatile"),
    Done({"n": 1}),
]


def told() -> bytes:
    """What a teller writes for FRAMES."""
    ours, theirs = os.pipe()
    teller = Teller(theirs, Step(), frozenset(), frozenset())
    teller.whole("a", b"\xff" * 300, {"pid": 1})
    assert teller.begin("b", 5)
    teller.piece(memoryview(b"abc"))
    teller.gap(2)
    teller.end()
    teller.lacks("x", "why")
    teller.phase("volatile")
    teller.notes["n"] = 1
    teller.done()
    os.close(theirs)
    data = os.read(ours, 1 << 16)
    os.close(ours)
    return data


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_frames_come_whole_however_they_are_cut(size: int) -> None:
    listener, data = Listener(), told()
    found = [frame for at in range(0, len(data), size) for frame in listener.feed(data[at : at + size])]
    assert found == FRAMES


def test_a_teller_leaves_out_what_was_told_and_what_hangs() -> None:
    step = Step()
    teller = Teller(-1, step, frozenset({"a"}), frozenset({"1/exe"}))
    teller.whole("a", b"")
    assert not teller.begin("a", 1)
    assert not teller.may("1/exe")
    assert step.get() == ""
    assert teller.may("1/maps")
    assert step.get() == "1/maps"
    step.set("x" * 1000)
    assert step.get() == "x" * STEP_BYTES


def test_messages() -> None:
    start = Start(1, 2.5, b"job")
    assert decode_to_nursery(encode(start)) == start
    result = Result(True, details={"bundle": "x"})
    assert decode_from_worker(encode(result)) == result
    assert decode_from_worker(encode(Progress("read"))) == Progress("read")
    with pytest.raises(JobError, match="the limit is"):
        encode(Result(False, "x" * MAX_MESSAGE))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    for decode in (decode_job, decode_to_nursery, decode_from_nursery, decode_from_worker):
        with pytest.raises(JobError):
            decode(b"\xc1" + data)  # msgpack never uses this byte
        try:
            decode(data)
        except JobError:
            continue


def test_opened_beneath_and_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x" * 10)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "out").symlink_to("/etc/hostname")
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fd = open_beneath(directory, b"a/file")
        assert look(fd).size == 10
        assert list(pieces(fd, 4)) == [b"xxxx"]
        os.close(fd)
        for name in (b"link/file", b"out", b"../x", b"/etc/hostname", b"a/../../x", b"none", b"a\0b", b""):
            with pytest.raises(OSError):
                open_beneath(directory, name)
        found = look(directory, b"out")
        assert not found.is_regular
        assert found.inode == os.lstat(tmp_path / "out").st_ino
        assert found.mtime_ns == os.lstat(tmp_path / "out").st_mtime_ns
    finally:
        os.close(directory)


def test_another_file_system_is_not_beneath() -> None:
    directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="ross-device"):
            open_beneath(directory, b"proc/version")
    finally:
        os.close(directory)


@pytest.mark.parametrize("size", [0, 1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 300_000])
def test_read_to_a_limit(tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(b"x" * size)
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for limit in (1, 16 * 1024, 200_000, 300_000, 400_000):
            data, cut = read_at(directory, "f", limit)
            assert (len(data), cut) == (min(size, limit), size > limit)
    finally:
        os.close(directory)


def test_cgroup_values_of_this_process() -> None:
    found = cgroups.values(Path("/proc/self/cgroup").read_bytes())
    assert all(directory.startswith(cgroups.ROOT) for directory in found)
    assert cgroups.values(b"0::/../..\n1:cpu:/none\nnonsense\n") == {}
