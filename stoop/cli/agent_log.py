"""The agent's log on the terminal of `stoop run`: its JSON lines as text, without those that the live lines tell."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from stoop.log import line_text, printable

ACT = "act"
"""The message of a record's log line; `stoop run` shows each record itself."""

JOIN_S = 5.0
"""How long to wait for the rest of the log once the agent has ended, in seconds."""


def shown(line: str) -> str | None:
    """A line of the agent's log as a person reads it; None for one that is told already."""
    try:
        fields = json.loads(line)
    except ValueError:
        return printable(line)
    if not isinstance(fields, dict) or not isinstance(fields.get("event"), str):
        return printable(line)
    event = fields.pop("event")
    if event == ACT:
        return None
    return line_text(str(fields.pop("level", "info")), event, _nanoseconds(fields.pop("time", "")), fields)


def _nanoseconds(stamp: object) -> int:
    """RFC 3339 as the log writes it → nanoseconds since the epoch; 0 for anything else."""
    try:
        moment = datetime.datetime.fromisoformat(str(stamp))
    except ValueError:
        return 0
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return since // datetime.timedelta(microseconds=1) * 1000


@contextmanager
def shown_log(log: IO[bytes], write: Callable[[str], object]) -> Iterator[None]:
    """While inside: each line of the log that has something to show is written. Left once the log has ended."""

    def forward() -> None:
        for line in log:
            text = shown(line.decode(errors="replace").rstrip("\n"))
            if text is not None:
                write(text + "\n")

    # A thread, because the log goes on while the agent starts, acts and ends; it only waits for lines.
    thread = threading.Thread(target=forward, name="agent's log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(JOIN_S)
