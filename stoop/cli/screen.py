"""What a person sees, and what a machine reads: every line of the `stoop` command goes through here.

Text from alerts is data: it becomes rich `Text`, never markup, and control and bidirectional characters are escaped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from stoop.log import printable

OUTCOME_STYLES = {
    "done": "green",
    "skipped": "dim",
    "refused": "yellow",
    "failed": "bold red",
    "expired": "magenta",
    "would": "cyan",
}


class _Console(Console):
    """A console that leaves a closed pipe to `main` instead of ending the program itself."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def out() -> Console:
    """The console of stdout: no markup, no highlighting, no wrapping of its own."""
    return _Console(markup=False, highlight=False, emoji=False, soft_wrap=True)


def err() -> Console:
    """The console of stderr."""
    return _Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)


def plain(value: object) -> str:
    """Any value as one line that can't do anything to a terminal."""
    return printable(value if isinstance(value, str) else str(value))


def text(*parts: object) -> Text:
    """A line from strings and (string, style) pairs, escaped."""
    line = Text()
    for part in parts:
        content, style = part if isinstance(part, tuple) else (part, "")
        line.append(plain(content), style)
    return line


def json_line(value: object) -> None:
    """One JSON value on one line of stdout. All that is not ASCII is escaped: no terminal can be steered by it."""
    encoded = json.dumps(value, default=str, ensure_ascii=True).replace("\x7f", "\\u007f")
    sys.stdout.write(encoded + "\n")


def raw(content: str) -> None:
    """Our own text to stdout as it is, for what is meant to be pasted or piped."""
    sys.stdout.write(content if content.endswith("\n") else content + "\n")


def warn(message: object) -> None:
    """One line on stderr that begins with `warning:`."""
    err().print(text(("warning: ", "yellow"), message))


def duration(microseconds: float | None) -> str:
    """A time a person can read: `87 µs`, `1.42 ms`, `3.1 s`; `-` for None."""
    if microseconds is None:
        return "-"
    size = abs(microseconds)
    if size < 1000:
        return f"{microseconds:.0f} µs"
    if size < 1_000_000:
        return f"{microseconds / 1000:.2f} ms"
    return f"{microseconds / 1_000_000:.1f} s"


def target_name(target: Mapping[str, Any]) -> str:
    """One word for a record's target: `sh[4711] in default/d34690e67a3a`, or what the alert claims."""
    pid, claimed = target.get("pid"), target.get("claimed_pid")
    name = f"pid {claimed}" if claimed is not None else ""
    if pid is not None:
        name = f"{target.get('comm') or '?'}[{pid}]"
    container = str(target.get("container_id") or target.get("claimed_container_id") or "")
    place = container[:12] if container != "host" else ""
    namespace = target.get("namespace")
    where = f"{namespace}/{place}" if namespace and place else place or str(namespace or "")
    return " in ".join(part for part in (name, where) if part) or "-"
