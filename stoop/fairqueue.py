"""A bounded queue that is fair by group: one noisy container can't starve another's response.

Items are taken round-robin over the groups, oldest first inside each. When the queue is full, the newest item of the
busiest `crowd` (rule, target) makes room: it is the one whose loss costs least, since the same rule already waits for
the same target many times. Nothing is lost silently: `push` returns what was dropped.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _Entry(Generic[Item]):
    __slots__ = ("crowd", "dropped", "item", "line")

    def __init__(self, item: Item, crowd: tuple[str, str], line: deque[_Entry[Item]]) -> None:
        self.item = item
        self.crowd = crowd
        self.line = line
        self.dropped = False


class FairQueue(Generic[Item]):
    """At most `capacity` items. Not thread-safe; every call is O(1) but a `push` on a full queue (O(crowds))."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._groups: OrderedDict[str, deque[_Entry[Item]]] = OrderedDict()
        self._crowds: dict[tuple[str, str], deque[_Entry[Item]]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, item: Item, group: str, crowd: tuple[str, str]) -> Item | None:
        """Add an item; what had to make room for it (perhaps itself), or None."""
        line = self._groups.setdefault(group, deque())
        entry = _Entry(item, crowd, line)
        line.append(entry)
        self._crowds.setdefault(crowd, deque()).append(entry)
        self._length += 1
        return self._drop() if self._length > self.capacity else None

    def pop(self) -> Item | None:
        """The next item, or None. Its group goes to the end of the line."""
        while self._groups:
            group, entries = next(iter(self._groups.items()))
            while entries and entries[0].dropped:
                entries.popleft()
            if not entries:
                del self._groups[group]
                continue
            entry = entries.popleft()
            if entries:
                self._groups.move_to_end(group)
            else:
                del self._groups[group]
            self._forget(entry)
            return entry.item
        return None

    def _drop(self) -> Item:
        entry = max(self._crowds.values(), key=len)[-1]
        entry.dropped = True
        self._forget(entry)
        while entry.line and entry.line[-1].dropped:  # those further left are skipped by `pop`
            entry.line.pop()
        return entry.item

    def _forget(self, entry: _Entry[Item]) -> None:
        self._length -= 1
        crowd = self._crowds[entry.crowd]
        if crowd[0] is entry:
            crowd.popleft()
        else:
            crowd.remove(entry)
        if not crowd:
            del self._crowds[entry.crowd]
