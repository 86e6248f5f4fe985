"""The ring: what is read back after any end of its agent."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoop import ring as ring_module
from stoop.errors import JournalError
from stoop.ring import (
    FILE_BYTES,
    HEADER_BYTES,
    MAX_PAYLOAD,
    RING_FILE,
    SLOT_BYTES,
    SLOTS,
    Found,
    Intent,
    LossWindow,
    Ring,
    open_ring,
    pack_intent,
    read_ring,
    read_slot,
    unpack_intent,
)
from stoop.spec import (
    Verdict,
)
from stoop.statedir import MAX_ASIDE, boot_id

NOW = 1_700_000_000_000_000_000


def intent(number: int, **changes: object) -> Intent:
    """A plausible intent; `number` tells it from others and orders it in time."""
    values: dict[str, object] = {
        "act": f"{number:032x}",
        "run": f"{number + 1_000_000:032x}",
        "alert": f"{number + 2_000_000:032x}",
        "rule": "Kill a terminal shell",
        "action": "Kill it",
        "actionner": "process:kill",
        "target": f"0badcafe:{4000 + number}:123456",
        "pid": 4000 + number,
        "birth": 123456,
        "event_ns": NOW,
        "received_ns": NOW + 1,
        "decided_ns": NOW + 2 + number,
    }
    return Intent(**{**values, **changes})  # type: ignore[arg-type]  # the values above have the fields' types


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    opened, _ = open_ring(tmp_path, NOW)
    yield opened
    opened.close(orderly=True)


def reopened(state_dir: Path) -> Found:
    """What an agent finds that starts now; its own ring is let go as by SIGKILL."""
    _, found = open_ring(state_dir, NOW + 10**9)
    return found


def test_a_first_start_finds_nothing(tmp_path: Path) -> None:
    opened, found = open_ring(tmp_path, NOW)
    assert found == Found(fresh=True)
    assert opened.lasting
    assert opened.used == 0
    assert (tmp_path / RING_FILE).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / RING_FILE).stat().st_size == FILE_BYTES


def test_every_block_of_the_file_is_there_before_it_is_mapped(ring: Ring, tmp_path: Path) -> None:
    assert (tmp_path / RING_FILE).stat().st_blocks * 512 >= FILE_BYTES


def test_an_orderly_end_leaves_nothing(tmp_path: Path) -> None:
    opened, _ = open_ring(tmp_path, NOW)
    opened.accepted(1, NOW)
    slot = opened.reserve(intent(1))
    opened.free(slot)
    opened.settled(1, NOW + 5)
    opened.close(orderly=True)
    found = reopened(tmp_path)
    assert found.closed
    assert found.leftovers == ()
    assert found.window is None
    assert found.pid == os.getpid()
    assert found.notes == ()


def test_what_a_slot_says_at_each_point(ring: Ring, tmp_path: Path) -> None:
    only_intent, begun, ended = (ring.reserve(intent(number)) for number in (1, 2, 3))
    ring.acted(begun, NOW + 50)
    ring.acted(ended, NOW + 51)
    ring.ended(ended, Verdict.FAILED, NOW + 60)
    first, second, third = reopened(tmp_path).leftovers
    assert (first.slot, first.intent, first.acted_ns, first.verdict) == (only_intent, intent(1), 0, None)
    assert (second.slot, second.intent, second.acted_ns, second.verdict) == (begun, intent(2), NOW + 50, None)
    assert (third.slot, third.acted_ns, third.ended_ns, third.verdict) == (ended, NOW + 51, NOW + 60, Verdict.FAILED)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_is_read_back(ring: Ring, tmp_path: Path, verdict: Verdict) -> None:
    ring.ended(ring.reserve(intent(1)), verdict, NOW)
    assert reopened(tmp_path).leftovers[0].verdict is verdict


def test_leftovers_come_in_the_order_of_their_decisions(ring: Ring, tmp_path: Path) -> None:
    for number in (3, 1, 2):
        ring.reserve(intent(number))
    assert [leftover.intent.pid for leftover in reopened(tmp_path).leftovers] == [4001, 4002, 4003]


def test_a_slot_used_again_keeps_no_stamp_of_its_last_act(ring: Ring, tmp_path: Path) -> None:
    slot = ring.reserve(intent(1))
    ring.acted(slot, NOW)
    ring.ended(slot, Verdict.DONE, NOW)
    ring.free(slot)
    assert ring.reserve(intent(2)) == slot
    (leftover,) = reopened(tmp_path).leftovers
    assert (leftover.intent, leftover.acted_ns, leftover.verdict) == (intent(2), 0, None)


def test_leftovers_stay_taken_until_they_are_freed(ring: Ring, tmp_path: Path) -> None:
    ring.reserve(intent(1))
    again, found = open_ring(tmp_path, NOW)
    assert again.used == 1
    slots = {again.reserve(intent(number)) for number in range(SLOTS - 1)}
    assert found.leftovers[0].slot not in slots
    assert again.reserve(intent(9)) == -1
    again.free(found.leftovers[0].slot)
    assert again.reserve(intent(9)) == found.leftovers[0].slot


def test_a_full_ring_says_so_and_stops_nothing(ring: Ring) -> None:
    slots = [ring.reserve(intent(number)) for number in range(SLOTS)]
    assert sorted(slots) == list(range(SLOTS))
    assert ring.reserve(intent(1)) == -1
    ring.acted(-1, NOW)
    assert (ring.full, ring.used) == (1, SLOTS)
    ring.free(slots[7])
    assert ring.reserve(intent(1)) == slots[7]


def test_freeing_twice_gives_one_slot(ring: Ring) -> None:
    slot = ring.reserve(intent(1))
    ring.free(slot)
    ring.free(slot)
    assert ring.reserve(intent(2)) != ring.reserve(intent(3))


def test_what_comes_after_the_end_goes_nowhere(tmp_path: Path) -> None:
    opened, _ = open_ring(tmp_path, NOW)
    opened.close(orderly=True)
    before = (tmp_path / RING_FILE).read_bytes()
    opened.accepted(1, NOW)
    slot = opened.reserve(intent(1))
    opened.acted(slot, NOW)
    opened.ended(slot, Verdict.DONE, NOW)
    opened.close(orderly=False)
    assert (tmp_path / RING_FILE).read_bytes() == before


# ---------------------------------------------------------------- the loss window


def test_alerts_not_settled_are_a_window(ring: Ring, tmp_path: Path) -> None:
    ring.accepted(10, NOW)
    ring.settled(10, NOW + 1)
    ring.accepted(3, NOW + 100)
    ring.accepted(2, NOW + 200)
    ring.settled(1, NOW + 250)
    assert reopened(tmp_path).window == LossWindow(NOW + 100, NOW + 200, 4)


def test_records_that_were_only_in_memory_are_a_window(ring: Ring, tmp_path: Path) -> None:
    assert ring.queued(NOW) == NOW
    ring.written(1, NOW)
    first, *_ = (ring.queued(NOW + at) for at in (10, 20, 30))
    ring.written(1, first)
    assert reopened(tmp_path).window == LossWindow(NOW + 10, NOW + 30, 2)


def test_a_record_in_memory_reaches_back_to_when_its_alert_came(ring: Ring, tmp_path: Path) -> None:
    ring.accepted(1, NOW)
    ring.settled(1, NOW + 1)
    ring.accepted(1, NOW + 5)
    ring.accepted(1, NOW + 7)
    since_ns = ring.queued(NOW + 1000)
    assert since_ns == NOW + 5
    ring.settled(2, NOW + 1001)
    assert reopened(tmp_path).window == LossWindow(NOW + 5, NOW + 1000, 1)


def test_all_settled_and_written_is_no_window(ring: Ring, tmp_path: Path) -> None:
    ring.accepted(2, NOW)
    ring.queued(NOW + 1)
    ring.settled(2, NOW + 2)
    ring.written(1, NOW + 1)
    found = reopened(tmp_path)
    assert found.window is None
    assert not found.closed


def test_a_window_is_told_once(ring: Ring, tmp_path: Path) -> None:
    ring.accepted(1, NOW)
    assert reopened(tmp_path).window is not None
    assert reopened(tmp_path).window is None


def test_after_a_power_cut_nobody_can_say_how_many(ring: Ring, tmp_path: Path) -> None:
    ring.accepted(1, NOW)
    ring.settled(1, NOW + 1)
    found = read_ring((tmp_path / RING_FILE).read_bytes(), bytes(16), NOW + 99)
    assert found.window == LossWindow(NOW, NOW + 99, None)
    assert found.notes == ("the machine was restarted while the agent ran",)


def test_after_an_orderly_end_a_restart_of_the_machine_is_nothing(tmp_path: Path) -> None:
    opened, _ = open_ring(tmp_path, NOW)
    opened.close(orderly=True)
    found = read_ring((tmp_path / RING_FILE).read_bytes(), bytes(16), NOW)
    assert (found.window, found.notes) == (None, ())


def test_counters_that_do_not_add_up_are_an_unknown_window(ring: Ring, tmp_path: Path) -> None:
    ring.settled(1, NOW)
    window = reopened(tmp_path).window
    assert window is not None
    assert window.at_most is None


# ---------------------------------------------------------------- bounded intents

TEXT = st.text(st.characters(), max_size=300)  # lone surrogates too
NUMBER = st.integers(min_value=-(2**70), max_value=2**70)


@given(st.tuples(*[TEXT] * 7), st.tuples(*[NUMBER] * 5))
def test_any_intent_fits_and_is_read_back(texts: tuple[str, ...], numbers: tuple[int, ...]) -> None:
    payload = pack_intent(Intent(*texts, *numbers))  # type: ignore[arg-type]  # tuples of the right length
    assert len(payload) <= MAX_PAYLOAD
    read_back = unpack_intent(payload)
    for wanted, got in zip(texts, (getattr(read_back, name) for name in Intent.__struct_fields__), strict=False):
        assert wanted.encode(errors="replace").decode().startswith(got)


def test_long_names_are_cut_and_ids_stay_whole() -> None:
    long = intent(1, rule="r" * 5000, action="ä" * 5000, target="t" * 5000)
    read_back = unpack_intent(pack_intent(long))
    assert (read_back.act, read_back.run, read_back.alert) == (long.act, long.run, long.alert)
    assert read_back.rule == "r" * 72
    assert read_back.action == "ä" * 36
    assert read_back.decided_ns == long.decided_ns


def test_a_long_name_alone_is_not_cut_while_there_is_room() -> None:
    assert unpack_intent(pack_intent(intent(1, rule="r" * 150))).rule == "r" * 150


# ---------------------------------------------------------------- torn slots and bad files


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_anywhere_in_a_slot_never_passes_for_another_intent(
    ring: Ring, tmp_path: Path, flip: int
) -> None:
    slot = ring.reserve(intent(1))
    ring.acted(slot, NOW)
    ring.ended(slot, Verdict.DONE, NOW + 1)
    data = bytearray((tmp_path / RING_FILE).read_bytes())
    whole = read_slot(bytes(data), slot)
    assert whole is not None
    begin = HEADER_BYTES + slot * SLOT_BYTES
    torn = 0
    for at in range(begin, begin + SLOT_BYTES):
        data[at] ^= flip
        try:
            said = read_slot(bytes(data), slot)
        except JournalError:
            torn += 1
        else:
            assert said is not None
            assert said.intent == whole.intent
            assert said.acted_ns in (0, whole.acted_ns)
            assert said.verdict in (None, whole.verdict)
        data[at] ^= flip
    assert torn >= len(pack_intent(intent(1)))


def test_a_torn_slot_is_told_and_freed(ring: Ring, tmp_path: Path) -> None:
    slot = ring.reserve(intent(1))
    with open(tmp_path / RING_FILE, "r+b") as file:
        file.seek(HEADER_BYTES + slot * SLOT_BYTES + 45)
        file.write(b"\xff\xff\xff")
    again, found = open_ring(tmp_path, NOW)
    assert found.leftovers == ()
    assert found.notes == (f"slot {slot} of the ring is torn",)
    assert again.used == 0
    assert reopened(tmp_path).notes == ()


def test_a_slot_whose_checksum_fits_no_intent_is_told(tmp_path: Path, ring: Ring) -> None:
    data = bytearray((tmp_path / RING_FILE).read_bytes())
    payload = b"\x93abc"
    head = struct.pack("<BxHI32x", ring_module.TAKEN, len(payload), zlib.crc32(payload))
    data[HEADER_BYTES : HEADER_BYTES + len(head) + len(payload)] = head + payload
    with pytest.raises(JournalError, match="not an intent"):
        read_slot(bytes(data), 0)


def test_a_kill_before_the_state_byte_leaves_a_free_slot(ring: Ring, tmp_path: Path) -> None:
    slot = ring.reserve(intent(1))
    data = bytearray((tmp_path / RING_FILE).read_bytes())
    data[HEADER_BYTES + slot * SLOT_BYTES] = ring_module.FREE
    assert read_slot(bytes(data), slot) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"\xff" * FILE_BYTES, bytes(FILE_BYTES), b"STOOPRNG" + b"\x02" * (FILE_BYTES - 8)],
    ids=["empty", "short", "ones", "zeros", "another version"],
)
def test_a_file_that_is_no_ring_is_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RING_FILE).write_bytes(content)
    opened, found = open_ring(tmp_path, NOW)
    assert found.fresh
    assert not found.closed
    assert "it is ring.corrupt-1 now" in found.notes[0]
    assert (tmp_path / "ring.corrupt-1").read_bytes() == content
    assert opened.lasting
    assert opened.reserve(intent(1)) >= 0


def test_broken_rings_kept_are_bounded(tmp_path: Path) -> None:
    for number in range(MAX_ASIDE + 2):
        (tmp_path / RING_FILE).write_bytes(b"%d" % number)
        open_ring(tmp_path, NOW)
    assert len(list(tmp_path.glob("ring.corrupt-*"))) == MAX_ASIDE


@pytest.mark.parametrize("kind", ["directory", "fifo", "symlink"])
def test_what_is_no_regular_file_is_set_aside(tmp_path: Path, kind: str) -> None:
    path = tmp_path / RING_FILE
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"not ours")
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(elsewhere)
    opened, found = open_ring(tmp_path, NOW)
    assert found.fresh
    assert opened.lasting
    assert elsewhere.read_bytes() == b"not ours"


def test_without_a_directory_the_ring_is_plain_memory(tmp_path: Path) -> None:
    opened, found = open_ring(tmp_path / "missing", NOW)
    assert not opened.lasting
    assert "can't be kept in a file" in found.notes[-1]
    slot = opened.reserve(intent(1))
    opened.acted(slot, NOW)
    opened.free(slot)
    opened.close(orderly=True)


HEAD = boot_id()


@given(st.lists(st.tuples(st.integers(0, HEADER_BYTES + 4 * SLOT_BYTES - 1), st.integers(0, 255)), max_size=60))
def test_any_bytes_give_a_reading_or_a_journal_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(FILE_BYTES)
    data[:16] = struct.pack("<QQ", ring_module._MAGIC, ring_module._SHAPE)
    for at, value in changes:
        data[at] = value
    try:
        found = read_ring(bytes(data), HEAD, NOW)
    except JournalError:
        return
    assert len(found.leftovers) + len(found.notes) <= SLOTS + 1
