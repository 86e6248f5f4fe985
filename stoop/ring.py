"""The ring: what is about to be done, written to shared memory before it is done, so that SIGKILL can't hide it.

A file of fixed size, mapped shared: what is stored to it is in the page cache at once and stays there whatever becomes
of the agent (mmap(2)). Nothing is synced: a power cut may take it. Formats and reasons: docs/decisions/0002-journal.md.

States of a slot (one file owns them, this one):

    FREE ──reserve──▶ TAKEN ──acted──▶ TAKEN + acted stamp ──ended──▶ TAKEN + ended stamp ──free──▶ FREE

- `reserve` writes head, payload, and the state byte last: a kill in between leaves a free slot.
- `acted` and `ended` write a stamp with a checksum of its own: a kill in between leaves a stamp that does not count.
- `free` follows once SQLite has the record. A taken slot whose checksum is wrong is torn: told, counted and freed.

Counters of the header are single 8-byte stores into an aligned word: no signal can cut one in two. That is why they go
through a memoryview: struct.pack_into clears its buffer first, and a kill would then leave a zero.

One thread (the reflex) reserves, stamps and counts; the journal's thread frees and counts what it wrote.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections import deque
from pathlib import Path

import msgspec

from stoop.errors import JournalError
from stoop.spec import (
    Verdict,
)
from stoop.statedir import boot_id, set_aside

SLOTS = 4096
"""Acts under way or not yet in SQLite: a burst that no limit on damage lets through, for 2 MiB of memory at most."""

SLOT_BYTES = 512
"""Eight to a page, and room for the longest bounded intent (`MAX_PAYLOAD`)."""

HEADER_BYTES = 4096
"""One page, so that slots never share one with the counters."""

FILE_BYTES = HEADER_BYTES + SLOTS * SLOT_BYTES
RING_FILE = "ring"
VERSION = 1

FREE, TAKEN = 0x00, 0xA7

_HEAD = struct.Struct("<xHI32x")  # after the state byte: length and CRC-32 of the payload, then two empty stamps
_STAMP = struct.Struct("<QIB3x")  # when, CRC-32, code
_STAMPED = struct.Struct("<QB")  # what a stamp's CRC is over, seeded by the payload's: no stamp fits another intent
_HEAD_AT, _ACTED_AT, _ENDED_AT, _PAYLOAD_AT = 1, 8, 24, 40
MAX_PAYLOAD = SLOT_BYTES - _PAYLOAD_AT

_ID_BYTES, _NAME_BYTES = 32, 72
"""What a name keeps when a payload is too long: all of it then fits, and a container's identity (73) stays whole."""

_ACTED_CODE = 1
_VERDICT_CODES = {  # on disk: only ever add
    Verdict.DONE: 2,
    Verdict.SKIPPED: 3,
    Verdict.REFUSED: 4,
    Verdict.FAILED: 5,
    Verdict.EXPIRED: 6,
    Verdict.WOULD: 7,
}
_CODE_VERDICTS = {code: verdict for verdict, code in _VERDICT_CODES.items()}

_MAGIC = int.from_bytes(b"STOOPRNG", "little")
_SHAPE = VERSION | SLOT_BYTES << 16 | SLOTS << 32
# Words of the header, 8 bytes each. Times are CLOCK_REALTIME in ns.
_W_MAGIC, _W_SHAPE, _W_BOOT, _W_BOOT2, _W_PID, _W_CLOSED = range(6)
_W_ACCEPTED_NS, _W_ACCEPTED, _W_SETTLED, _W_IDLE_NS = range(8, 12)
_W_QUEUED_NS, _W_QUEUED, _W_WRITTEN, _W_WRITTEN_NS, _W_DRAINED_NS = range(16, 21)


class Intent(msgspec.Struct, frozen=True, array_like=True):
    """What is about to be done to whom: enough to report it, and to refuse doing it again. Ids are 32 hex digits."""

    act: str
    run: str
    alert: str
    rule: str
    action: str
    actionner: str
    target: str  # identity, as facts name it
    pid: int = 0
    birth: int = 0
    event_ns: int = 0
    received_ns: int = 0
    decided_ns: int = 0
    container: str = ""  # the first 12 digits of the id: enough to find it again


class Leftover(msgspec.Struct, frozen=True):
    """A slot that was in use when its agent ended. `acted_ns` 0: it is not known whether the act was begun."""

    slot: int
    intent: Intent
    acted_ns: int = 0
    ended_ns: int = 0
    verdict: Verdict | None = None  # how it ended, where that much was known


class LossWindow(msgspec.Struct, frozen=True):
    """What may be lost came in between these times (CLOCK_REALTIME, ns): `at_most` alerts, None when nobody can say."""

    from_ns: int
    to_ns: int
    at_most: int | None


class Found(msgspec.Struct, frozen=True):
    """What the last agent left in the ring. `fresh`: there was no ring that could be read."""

    fresh: bool = False
    closed: bool = True  # its agent ended in order
    pid: int = 0
    last_ns: int = 0
    leftovers: tuple[Leftover, ...] = ()
    window: LossWindow | None = None
    notes: tuple[str, ...] = ()


def pack_intent(intent: Intent) -> bytes:
    """At most `MAX_PAYLOAD` bytes of msgpack, whatever is in the intent. Names are cut only when they don't fit."""
    try:
        payload = _encode(intent)
    except (UnicodeError, OverflowError):
        return _encode(_bounded(intent))
    return payload if len(payload) <= MAX_PAYLOAD else _encode(_bounded(intent))


def _bounded(intent: Intent) -> Intent:
    values: list[object] = []
    for field in intent.__struct_fields__:
        value = getattr(intent, field)
        if isinstance(value, int):
            values.append(min(max(value, 0), 2**64 - 1))
        else:
            room = _ID_BYTES if field in ("act", "run", "alert", "container") else _NAME_BYTES
            values.append(value.encode(errors="replace")[:room].decode(errors="ignore"))
    return Intent(*values)  # type: ignore[arg-type]  # each value kept the type of its field


_encode = msgspec.msgpack.Encoder().encode
unpack_intent = msgspec.msgpack.Decoder(Intent).decode


def _stamp(at_ns: int, code: int, seed: int) -> bytes:
    return _STAMP.pack(at_ns, zlib.crc32(_STAMPED.pack(at_ns, code), seed), code)


def _read_stamp(data: bytes, at: int, seed: int) -> tuple[int, int]:
    """(when, code), or zeros for a stamp that was never or only half written."""
    at_ns, crc, code = _STAMP.unpack_from(data, at)
    if not code or crc != zlib.crc32(_STAMPED.pack(at_ns, code), seed):
        return 0, 0
    return at_ns, code


def read_slot(data: bytes, slot: int) -> Leftover | None:
    """What the slot of a ring's bytes says; None when it is free. Raises JournalError for a torn one."""
    at = HEADER_BYTES + slot * SLOT_BYTES
    if data[at] == FREE:
        return None
    length, crc = _HEAD.unpack_from(data, at + _HEAD_AT)
    payload = data[at + _PAYLOAD_AT : at + _PAYLOAD_AT + min(length, MAX_PAYLOAD)]
    if data[at] != TAKEN or len(payload) != length or zlib.crc32(payload) != crc:
        raise JournalError(f"slot {slot} of the ring is torn")
    try:
        intent = unpack_intent(payload)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise JournalError(f"slot {slot} of the ring is not an intent: {error}") from error
    acted_ns, _ = _read_stamp(data, at + _ACTED_AT, crc)
    ended_ns, code = _read_stamp(data, at + _ENDED_AT, crc)
    return Leftover(slot, intent, acted_ns, ended_ns, _CODE_VERDICTS.get(code))


def read_ring(data: bytes, boot: bytes, now_ns: int) -> Found:
    """What the bytes of a ring say. Raises JournalError when they are no ring of this version."""
    if len(data) != FILE_BYTES:
        raise JournalError(f"the ring has {len(data)} bytes instead of {FILE_BYTES}")
    words = _header_words(data)
    if words[_W_MAGIC] != _MAGIC or words[_W_SHAPE] != _SHAPE:
        raise JournalError("the ring is of another version, or not a ring")
    leftovers: list[Leftover] = []
    notes: list[str] = []
    for slot in range(SLOTS):
        try:
            leftover = read_slot(data, slot)
        except JournalError as error:
            notes.append(str(error))
        else:
            if leftover is not None:
                leftovers.append(leftover)
    leftovers.sort(key=lambda each: each.intent.decided_ns)
    same_boot = data[_W_BOOT * 8 : _W_BOOT * 8 + 16] == boot
    if not same_boot and not words[_W_CLOSED]:
        notes.append("the machine was restarted while the agent ran")
    return Found(
        closed=bool(words[_W_CLOSED]),
        pid=words[_W_PID],
        last_ns=max(words[_W_ACCEPTED_NS], words[_W_QUEUED_NS], words[_W_WRITTEN_NS]),
        leftovers=tuple(leftovers),
        window=_window(words, same_boot, now_ns),
        notes=tuple(notes),
    )


def _header_words(data: bytes | mmap.mmap) -> memoryview[int]:
    """The header as words of 8 bytes. The view must be released before what it shows can be closed."""
    with memoryview(data) as whole, whole[:HEADER_BYTES] as header:
        return header.cast("Q")


def _window(words: memoryview[int], same_boot: bool, now_ns: int) -> LossWindow | None:
    unsettled = words[_W_ACCEPTED] - words[_W_SETTLED]
    unwritten = words[_W_QUEUED] - words[_W_WRITTEN]
    begins = [words[_W_IDLE_NS]] if unsettled else []
    if unwritten:
        begins.append(max(words[_W_DRAINED_NS], words[_W_WRITTEN_NS]))
    last_ns = max(words[_W_ACCEPTED_NS], words[_W_QUEUED_NS])
    if not same_boot and not words[_W_CLOSED]:  # the last pages may never have come to the disk
        return LossWindow(min(begins, default=last_ns), now_ns, None)
    if not begins:
        return None
    if unsettled < 0 or unwritten < 0:
        return LossWindow(min(begins), now_ns, None)
    return LossWindow(min(begins), last_ns, unsettled + unwritten)


class Ring:
    """The mapped ring. `full` counts the acts that found no slot. Made by `open_ring`; closed by its owner."""

    def __init__(self, memory: mmap.mmap, leftovers: tuple[Leftover, ...], *, lasting: bool) -> None:
        self.lasting = lasting
        self.full = 0
        self._map = memory
        self._words = _header_words(memory)
        self._crcs = [0] * SLOTS
        kept = {leftover.slot for leftover in leftovers}
        # Taken from the end and given back there: few pages are ever touched, and those stay warm.
        self._free = deque(slot for slot in reversed(range(SLOTS)) if slot not in kept)
        self._accepted = self._settled = self._queued = self._written = self._idle_ns = 0

    used = property(lambda self: SLOTS - len(self._free), doc="Slots that are not free.")

    def begin(self, boot: bytes) -> None:
        """Take the ring over: free what was torn, forget what was counted, say who we are. Leftovers stay taken."""
        words = self._words
        for slot in self._free:
            self._map[HEADER_BYTES + slot * SLOT_BYTES] = FREE
        for word in range(_W_ACCEPTED_NS, _W_DRAINED_NS + 1):
            words[word] = 0
        words[_W_BOOT], words[_W_BOOT2] = (int.from_bytes(boot[at : at + 8], "little") for at in (0, 8))
        words[_W_PID] = os.getpid()
        words[_W_CLOSED] = 0
        words[_W_SHAPE] = _SHAPE
        words[_W_MAGIC] = _MAGIC

    def reserve(self, intent: Intent) -> int:
        """Write down what is about to be done; its slot. -1, counted, when every slot is taken: the act goes on."""
        try:
            slot = self._free.pop()
        except IndexError:
            self.full += 1
            return -1
        payload = pack_intent(intent)
        self._crcs[slot] = crc = zlib.crc32(payload)
        at = HEADER_BYTES + slot * SLOT_BYTES
        memory = self._map
        memory[at + _HEAD_AT : at + _PAYLOAD_AT + len(payload)] = _HEAD.pack(len(payload), crc) + payload
        memory[at] = TAKEN
        return slot

    def acted(self, slot: int, now_ns: int) -> None:
        """The act was begun: a signal was sent, and can't be taken back. Nothing for slot -1."""
        if slot >= 0:
            at = HEADER_BYTES + slot * SLOT_BYTES + _ACTED_AT
            self._map[at : at + _STAMP.size] = _stamp(now_ns, _ACTED_CODE, self._crcs[slot])

    def ended(self, slot: int, verdict: Verdict, now_ns: int) -> None:
        """How it ended is known, but not in SQLite yet."""
        at = HEADER_BYTES + slot * SLOT_BYTES + _ENDED_AT
        self._map[at : at + _STAMP.size] = _stamp(now_ns, _VERDICT_CODES[verdict], self._crcs[slot])

    def free(self, slot: int) -> None:
        """Give the slot back. Nothing for one that is free already."""
        at = HEADER_BYTES + slot * SLOT_BYTES
        if self._map[at] != FREE:
            self._map[at] = FREE
            self._free.append(slot)

    def accepted(self, count: int, now_ns: int) -> None:
        """So many alerts were taken from their sender, and are ours to lose."""
        words = self._words
        if self._accepted == self._settled:
            words[_W_IDLE_NS] = self._idle_ns = now_ns
        words[_W_ACCEPTED_NS] = now_ns
        self._accepted += count
        words[_W_ACCEPTED] = self._accepted

    def settled(self, count: int, now_ns: int) -> None:
        """Nothing more will come of so many alerts, and what came of them was put into the journal."""
        words = self._words
        self._settled += count
        words[_W_SETTLED] = self._settled
        if self._accepted == self._settled:
            words[_W_IDLE_NS] = self._idle_ns = now_ns

    def queued(self, now_ns: int) -> int:
        """One record that holds no slot waits for SQLite: until `written` it is only in memory.

        Returns a time that `written` wants: its alert, not settled yet, was not accepted before. It never goes back.
        """
        words = self._words
        since_ns = now_ns if self._accepted == self._settled else self._idle_ns
        if self._queued == self._written:
            words[_W_DRAINED_NS] = since_ns
        words[_W_QUEUED_NS] = now_ns
        self._queued += 1
        words[_W_QUEUED] = self._queued
        return since_ns

    def written(self, count: int, since_ns: int) -> None:
        """So many of those, in order, are in SQLite; `since_ns` is what `queued` said of the last of them."""
        words = self._words
        words[_W_WRITTEN_NS] = since_ns
        self._written += count
        words[_W_WRITTEN] = self._written

    def close(self, *, orderly: bool) -> None:
        """Let go of the file. `orderly`: its agent ends as it should. What is still written to it goes nowhere."""
        if not self.lasting:
            return
        self.lasting = False
        self._words[_W_CLOSED] = int(orderly)
        self._words.release()
        self._map.close()
        self._map = mmap.mmap(-1, FILE_BYTES)
        self._words = _header_words(self._map)


def open_ring(state_dir: Path, now_ns: int) -> tuple[Ring, Found]:
    """The ring of this directory and what the last agent left in it. Raises nothing for a bad file or a full disk.

    Where no file can be had the ring is plain memory (`lasting` is False) and the notes say so.
    """
    path = state_dir / RING_FILE
    boot = boot_id()
    found = _find(path, boot, now_ns)
    try:
        memory = _map(path)
    except OSError as error:
        note = f"the ring can't be kept in a file ({error.strerror}): SIGKILL will lose what is under way"
        ring = Ring(mmap.mmap(-1, FILE_BYTES), (), lasting=False)
        slotless = tuple(msgspec.structs.replace(each, slot=-1) for each in found.leftovers)
        found = msgspec.structs.replace(found, leftovers=slotless, notes=(*found.notes, note))
    else:
        ring = Ring(memory, found.leftovers, lasting=True)
    ring.begin(boot)
    return ring, found


def _find(path: Path, boot: bytes, now_ns: int) -> Found:
    try:
        return read_ring(_read(path), boot, now_ns)
    except FileNotFoundError:
        return Found(fresh=True)
    except OSError as error:
        trouble = f"the ring can't be read: {error.strerror}"
    except JournalError as error:
        trouble = str(error)
    return Found(fresh=True, closed=False, notes=(f"{trouble}; {set_aside(path)}",))


def _read(path: Path) -> bytes:
    """The whole file, one byte more at most than a ring has. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with open(fd, "rb", closefd=False) as file:
            return file.read(FILE_BYTES + 1)
    finally:
        os.close(fd)


def _map(path: Path) -> mmap.mmap:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
        # Every block is there before it is mapped: a store into a hole on a full disk is SIGBUS, and ends the agent.
        os.posix_fallocate(fd, 0, FILE_BYTES)
        return mmap.mmap(fd, FILE_BYTES)
    finally:
        os.close(fd)
