"""Log lines: a constant message and keys, as text for a person or JSON for a machine, on standard error.

`line_text` and `line_json` make one line of plain values and import nothing heavy: the reflex may use them when
there is no helper. `configure` and `get` are structlog around the same two, for every other process.
Text from alerts is data: what could move a cursor, hide or reorder text, or begin a line of its own, is escaped.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from stoop.printable import printable as printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import FilteringBoundLogger

LEVELS = ("debug", "info", "warning", "error", "critical")
_SHORT = {"debug": "DBG", "info": "INF", "warning": "WRN", "error": "ERR", "critical": "CRT"}

MAX_VALUE = 4096
"""Characters of one value in a text line: what is longer (a hostile command line) is cut and says so. Not in JSON."""

_NEEDS_QUOTES = re.compile(r"""[\s"'=\\]""")


def timestamp(at_ns: int) -> str:
    """RFC 3339 in UTC with microseconds: `2026-08-04T10:11:12.123456Z`. `at_ns`: CLOCK_REALTIME."""
    seconds, rest = divmod(at_ns, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1000:06d}Z"


def line_text(level: str, event: str, at_ns: int, fields: Mapping[str, Any]) -> str:
    """One line for a person, without its line break: `TIME INF message key=value …`."""
    parts = [timestamp(at_ns), _SHORT.get(level, "INF"), printable(event)]
    parts += [f"{printable(key)}={_value_text(value)}" for key, value in fields.items()]
    return " ".join(parts)


def _value_text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = value
    elif isinstance(value, (dict, list, tuple)):
        # Compact JSON; its own escapes for what is not ASCII would hide names, ours follow below.
        text = _json(value, ascii_only=False)
    else:
        text = str(value)
    if len(text) > MAX_VALUE:
        text = f"{text[:MAX_VALUE]}… ({len(text) - MAX_VALUE} more)"
    shown = printable(text)
    if not isinstance(value, str):
        return shown
    return '"' + shown.replace('"', '\\"') + '"' if not shown or _NEEDS_QUOTES.search(shown) else shown


def line_json(level: str, event: str, at_ns: int, fields: Mapping[str, Any]) -> str:
    """One JSON object without its line break: `time`, `level`, `event`, then the fields.

    ASCII only: every other character is a JSON escape, so that raw JSON is harmless on a terminal as well.
    """
    head = {"time": timestamp(at_ns), "level": level, "event": event}
    return _json(head | {key: value for key, value in fields.items() if key not in head}, ascii_only=True)


def _json(value: Any, *, ascii_only: bool) -> str:
    try:
        return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False, default=str, separators=(",", ":"))
    except (ValueError, TypeError):
        # NaN and infinities are no JSON, and a key may be anything in details: rare, so only then at full price.
        return json.dumps(_plain(value), ensure_ascii=ascii_only, default=str, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


LINES: dict[str, Callable[[str, str, int, Mapping[str, Any]], str]] = {"text": line_text, "json": line_json}
"""The makers of a line by format."""


def resolve_format(wanted: str, stream: TextIO) -> str:
    """`text` or `json`; `auto` is text on a terminal."""
    if wanted == "auto":
        return "text" if stream.isatty() else "json"
    return wanted


# ---------------------------------------------------------------- structlog, for all but the reflex


class Sink:
    """What structlog writes to: one call a line. `write` takes the line with its line break."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def msg(self, line: str) -> None:
        self._write(line + "\n")

    debug = info = warning = error = critical = msg


def configure(wanted: str = "auto", stream: TextIO | None = None, write: Callable[[str], object] | None = None) -> None:
    """Set up logging for this process: `text`, `json` or `auto`, to `stream` (standard error) or to `write` instead."""
    target = stream if stream is not None else sys.stderr
    make_line = LINES[resolve_format(wanted, target)]

    def render(_logger: object, method: str, values: MutableMapping[str, Any]) -> str:
        at_ns = values.pop("at_ns", 0) or time.time_ns()
        return make_line(method, str(values.pop("event", "")), at_ns, values)

    def flush(line: str) -> None:
        target.write(line)
        target.flush()

    with _without_rich():
        import structlog

        structlog.configure(
            processors=[structlog.processors.format_exc_info, render],
            logger_factory=lambda *_: Sink(write or flush),
            wrapper_class=structlog.make_filtering_bound_logger("info"),
            cache_logger_on_first_use=False,
        )


def get() -> FilteringBoundLogger:
    """The process's logger, as `configure` set it up: `get().info("constant message", key=value)`."""
    with _without_rich():
        import structlog

        logger: FilteringBoundLogger = structlog.get_logger()
        return logger


@contextmanager
def _without_rich() -> Iterator[None]:
    """Import structlog without rich, for whose tracebacks it would pay 40 ms and 4 MiB in each process."""
    absent = "rich" not in sys.modules and "structlog" not in sys.modules
    if absent:
        sys.modules["rich"] = None  # type: ignore[assignment]  # documented: import then raises ImportError
    try:
        yield
    finally:
        if absent:
            del sys.modules["rich"]
