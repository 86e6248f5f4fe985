"""One open file that is read forward, and whether it is still the file that was read so far."""

from __future__ import annotations

import os
import stat

from stoop.intake.limits import ALERT_BYTES, FINGERPRINT_BYTES, READ_BYTES
from stoop.intake.marks import FileMark, fingerprint_of


class NotRegular(Exception):
    """The path names a FIFO, a directory or another thing that has no offsets."""


class Tail:
    """An open regular file: `position` is the next byte to read, `offset` where the first unread line begins.

    Owns its descriptor. Methods raise OSError as the system calls do.
    """

    def __init__(self, path: str, fd: int, offset: int = 0) -> None:
        there = os.fstat(fd)
        self.path = path
        self.dev = there.st_dev
        self.ino = there.st_ino
        self.position = offset
        self.offset = offset
        self._fd = fd
        self._before = _bytes_before(fd, offset)  # of position
        self._before_line = self._before  # of offset

    def close(self) -> None:
        """Let go of the file. Once."""
        os.close(self._fd)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def is_at(self, dev: int, ino: int) -> bool:
        return self.dev == dev and self.ino == ino

    def peek(self) -> bytes:
        """The next bytes, up to one read's worth; b"" at the end. `advance` takes them."""
        return os.pread(self._fd, READ_BYTES, self.position)

    def advance(self, data: bytes) -> None:
        """`data`, read at `position`, has been dealt with up to its last newline."""
        line_end = data.rfind(b"\n") + 1
        if line_end:
            self.offset = self.position + line_end
            self._before_line = (self._before + data[:line_end])[-FINGERPRINT_BYTES:]
        self.position += len(data)
        self._before = (self._before + data)[-FINGERPRINT_BYTES:]

    def mark(self) -> FileMark:
        """All whole lines up to here."""
        return FileMark(self.path, self.dev, self.ino, self.offset, fingerprint_of(self._before_line))

    def was_cut(self) -> bool:
        """Whether the file was truncated: it is shorter than what was read, or the bytes before are others now.

        A file that is cut and grows again with the same last 1,024 bytes is not told apart; alerts bear their time in
        nanoseconds, so that does not happen by chance.
        """
        if self.size() < self.position:
            return True
        return _bytes_before(self._fd, self.position) != self._before

    def skip_line(self) -> None:
        """Go on behind the next newline, if there is one within the length of an alert."""
        begun = os.pread(self._fd, ALERT_BYTES, self.position)
        self.advance(begun[: begun.find(b"\n") + 1])

    def restart(self) -> None:
        """Read from the beginning again, after a truncation."""
        self.position = self.offset = 0
        self._before = self._before_line = b""


def open_tail(path: str, offset: int = 0, *, at: str = "") -> Tail:
    """Open the file for following; `at` where it lies now, if it was renamed. Raises OSError and NotRegular."""
    # O_NONBLOCK: opening a FIFO would wait for its writer.
    fd = os.open(at or path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotRegular(path)
        return Tail(path, fd, offset)
    except (OSError, NotRegular):
        os.close(fd)
        raise


def open_marked(mark: FileMark, *, at: str = "") -> Tail | None:
    """The file, from the mark on, if it is the one that was read then; None if it is not.

    A copy counts (its inode differs, and device numbers change over reboots): what counts is the fingerprint. Without
    bytes before the offset there is none, then it must be the same inode.
    """
    tail = open_tail(mark.path, mark.offset, at=at)
    same = tail.size() >= mark.offset and tail.mark().fingerprint == mark.fingerprint
    if same and (mark.offset or tail.is_at(mark.dev, mark.ino)):
        return tail
    tail.close()
    return None


def find_renamed(mark: FileMark) -> Tail | None:
    """The file that was read then, under another name in its directory (logrotate); None if it is not there."""
    with os.scandir(os.path.dirname(mark.path) or ".") as entries:
        names = [entry.path for entry in entries if entry.inode() == mark.ino and entry.is_file(follow_symlinks=False)]
    for name in names:
        tail = open_marked(mark, at=name)
        if tail is not None:
            return tail
    return None


def open_end(path: str, most: int) -> Tail:
    """A file that is met for the first time: from its beginning, or the first whole line of its last `most` bytes."""
    tail = open_tail(path)
    start = tail.size() - most
    if start <= 0:
        return tail
    tail.close()
    tail = open_tail(path, start)
    tail.skip_line()
    return tail


def _bytes_before(fd: int, offset: int) -> bytes:
    start = max(0, offset - FINGERPRINT_BYTES)
    return os.pread(fd, offset - start, start)
