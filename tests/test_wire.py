"""Frames between the agent's processes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoop import wire
from stoop.record import Record, Timing
from stoop.spec import (
    Verdict,
)

RECORD = Record("a", "r", "c", "R", "kill", "process:kill", Verdict.DONE, "", {"pid": 7}, Timing(1, 2, 3, 4, 5))
MESSAGES: list[wire.AnyMessage] = [
    wire.Hello("node", "127.0.0.1", 0, "json", "1"),
    wire.RulesSource(1, (("rules.yaml", b"\x00\xff- rule: x"),)),
    wire.SnapshotReply(3, {"m": [(("a",), 1), (("b",), [[1, 2], 0.5])]}, True, {}),
    wire.Recorded(RECORD),
    wire.LogLine("info", "ready", 5, {"key": "value"}),
    wire.Serving("127.0.0.1", 2804),
    wire.SnapshotAsk(3),
    wire.RulesBegin(1, 1, "abc"),
    wire.RuleReady(1, msgspec.Raw(msgspec.msgpack.encode({"rule": "x"}))),
    wire.RulesEnd(1, ("careful",)),
    wire.RulesRejected(1, ("rules.yaml:1:1: no",)),
    wire.RulesRejected(1, ("rules.yaml:1:1: no",), ("rules.yaml:2:1: odd",)),
]


@pytest.mark.parametrize("size", [1, 2, 7, 4096, 10**6])
def test_messages_arrive_whole_however_they_are_cut(size: int) -> None:
    data = b"".join(map(wire.encode, MESSAGES))
    reader = wire.FrameReader()
    found = [message for at in range(0, len(data), size) for message in reader.feed(data[at : at + size])]
    assert list(map(wire.encode, found)) == list(map(wire.encode, MESSAGES))
    assert [type(message) for message in found] == [type(message) for message in MESSAGES]


def test_a_frame_over_the_limit_is_refused_before_it_is_held() -> None:
    with pytest.raises(wire.WireError, match="the limit"):
        list(wire.FrameReader().feed((wire.MAX_FRAME + 1).to_bytes(4, "little")))


@given(st.binary(max_size=200))
def test_any_bytes_give_messages_or_a_wire_error(data: bytes) -> None:
    reader = wire.FrameReader()
    try:
        found = list(reader.feed(len(data).to_bytes(4, "little") + data))
    except wire.WireError:
        return
    assert len(found) == 1
