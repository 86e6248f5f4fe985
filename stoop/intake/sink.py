"""Where alerts go once an intake has read them, and what every intake is handed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from stoop.alert import Alert
from stoop.errors import AlertError
from stoop.intake.limits import LIMITS, Limits

# Every `AlertError.kind` that comes from an intake, beside those of stoop.alert: a metric's label.
INTAKE_ERROR_KINDS = ("not allowed", "protocol", "too large", "too many", "too slow", "truncated", "unauthenticated")


class Peer(msgspec.Struct, frozen=True):
    """Who sends. `kind`: `unix`, `http`, `file` or `stdin`; `name`: socket path, `address:port` or file.

    `pid` and `uid` are the kernel's word (unix(7), SO_PEERCRED) and only known of unix peers: else 0 and -1.
    """

    kind: str
    name: str
    pid: int = 0
    uid: int = -1


class Sink(Protocol):
    """What takes the alerts. It never raises and never waits: an error in it is a bug and ends the program."""

    def opened(self, peer: Peer) -> None:
        """A sender that may send is there: a connection, a file, standard input."""
        ...

    def closed(self, peer: Peer) -> None:
        """It is gone. Once for each `opened`."""
        ...

    def taken(self, count: int, received_ns: int) -> None:
        """So many alerts of a connection were read and will be answered next: from now on they are ours to lose.

        `accept` follows at once. The file and standard input are not answered, and not told of here.
        """
        ...

    def accept(
        self, alerts: list[Alert], received_ns: int, peer: Peer, settled: Callable[[], None] | None = None
    ) -> None:
        """Match and act. The sender has its answer already, or it lies ready to be written.

        `received_ns`: CLOCK_REALTIME when their last byte was read. `settled` is called once, when all that came
        of these alerts is recorded; the file intake then commits its offset.
        """
        ...

    def refuse(self, error: AlertError, peer: Peer) -> None:
        """Something that was sent is not an alert, or its sender may not send. To be counted and said."""
        ...


class Warn(Protocol):
    """Says something loudly: a constant message and keys."""

    def __call__(self, event: str, **fields: object) -> None: ...


class Desk(msgspec.Struct, frozen=True):
    """What every intake is handed: where alerts go, the clock (CLOCK_REALTIME, ns), a way to warn, the limits."""

    sink: Sink
    now_ns: Callable[[], int]
    warn: Warn
    limits: Limits = LIMITS
