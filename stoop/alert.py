"""Falco's JSON → Alert. Any bytes give an Alert or an AlertError; nothing else escapes.

Two ways, one result. The fast way is one msgspec Struct for what Falco and Falcosidekick really send. Whatever that
can't take (other keys or types, nulls, keys in another case, invalid UTF-8, trailing bytes, repeated objects, deep
nesting) goes to the tolerant way, which does what Talon does (`gojson.read_alert`).
Pure: no I/O, no clock.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

from stoop.errors import AlertError
from stoop.gojson import MAX_NESTING, read_alert, read_object, time_ns
from stoop.gotext import clean_output, decimal_form, text_form

__all__ = [
    "ALERT_ERROR_KINDS",
    "MAX_ALERT",
    "MAX_NESTING",
    "PRIORITIES",
    "Alert",
    "alert_id",
    "decimal_form",
    "decode",
    "decode_tolerant",
    "text_form",
]

# Bytes of one alert. Real ones are 1 to 3 KB, two full command lines make 10; Talon's queue ends at 1 MiB too, so no
# alert that Talon could act on is refused. A larger body is a mistake or an attack on memory.
MAX_ALERT = 1024 * 1024

# Every `AlertError.kind` that comes from here: a metric's label.
ALERT_ERROR_KINDS = ("malformed", "type", "time", "nesting", "too large", "plain-text", "empty")

# talon.md 2.5; anything else ("Info" too) is 0, below them all.
PRIORITIES = {
    "debug": 1,
    "informational": 2,
    "notice": 3,
    "warning": 4,
    "error": 5,
    "critical": 6,
    "alert": 7,
    "emergency": 8,
}
DEFAULT_SOURCE = "syscall"  # Talon's for an alert without one (Falco before 0.30); "syscalls" stays what was sent


class Alert(msgspec.Struct, gc=False, eq=False):
    """One alert.

    `priority_text`: as sent. `source`: as sent, "syscall" when empty.
    `tags`: the strings among the tags, in order, repeated ones kept.
    `time_ns`: nanoseconds since the epoch, 0 = none; negative before 1970.
    `raw`: the alert's own bytes, perhaps with blanks around it.
    `context`, `trace_id`: Talon keeps them when they are sent. Falco never sends them.
    """

    rule: str
    priority_text: str
    source: str
    hostname: str
    sent_output: str
    tags: tuple[str, ...]
    time_ns: int
    raw: bytes
    held_fields: msgspec.Raw | dict[str, object]
    mixed_tags: tuple[object, ...] = ()  # all tags, when not all of them are strings
    context: dict[str, object] | None = None
    trace_id: str = ""

    @property
    def priority(self) -> int:
        """0 (unknown), 1 (debug) to 8 (emergency), in any case (talon.md 2.5)."""
        return PRIORITIES.get(self.priority_text.lower(), 0)

    @property
    def output(self) -> str:
        """The output without Falco's time and priority, cut as Talon cuts it (talon.md 1.2, 11.1)."""
        return clean_output(self.sent_output)

    @property
    def sent_tags(self) -> tuple[object, ...]:
        """All tags, also those that are not strings. Rules never match these; placeholders show them."""
        return self.mixed_tags or self.tags

    @property
    def fields(self) -> dict[str, object]:
        """`output_fields`, decoded when first asked: str, bool, None, int, float, lists and dicts of these.

        Integers are exact whatever their size. A number that neither int nor float holds (`1e999`, more than 4,300
        digits) is a Decimal. Don't change the dict: it is kept.
        """
        held = self.held_fields
        if not isinstance(held, dict):
            held = self.held_fields = _read_fields(held)
        return held


class _Wire(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What Falco (falco.md section 4) and Falcosidekick send. `uuid` and `message` are known in order to be ignored."""

    hostname: str = ""
    message: str = ""
    output: str = ""
    output_fields: msgspec.Raw = msgspec.Raw(b"{}")
    priority: str = ""
    rule: str = ""
    source: str = ""
    tags: tuple[str, ...] = ()
    time: str | msgspec.UnsetType = msgspec.UNSET
    uuid: str = ""


_UNSET = msgspec.UNSET
_BRACE = ord("{")

_read_wire = msgspec.json.Decoder(_Wire).decode
_read_object = msgspec.json.Decoder(dict[str, object]).decode

# Escapes that can stand for a letter of a key or for a part of a time, which Talon reads unescaped. The ones that
# Falcosidekick writes (\u003c \u003e \u0026) are not among them.
_HIDING_ESCAPE = re.compile(rb"\\u(?:00(?:[4-7]|2[b-eB-E]|3[0-9aA])|017|212)")

# Less than this can't hold MAX_NESTING containers inside one another, of which the alert is one.
_SHALLOW_SIZE = 2 * (MAX_NESTING - 1)

_MINUS_ZERO = re.compile(rb"-0(?![0-9.eE])")


def decode(data: bytes) -> Alert:
    """The first JSON value in `data` as an Alert. Raises AlertError (reason, kind) for everything else."""
    if len(data) > MAX_ALERT:
        raise AlertError(f"{len(data)} bytes, an alert has at most {MAX_ALERT}", "too large")
    try:
        wire = _read_wire(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return decode_tolerant(data)
    fields = wire.output_fields
    if (
        data.count(b'"output_fields"') > 1  # repeated ones are merged
        or (data.find(b"\\") >= 0 and _HIDING_ESCAPE.search(data))
        or memoryview(fields)[0] != _BRACE
        or (len(fields) > _SHALLOW_SIZE and data.count(b"[") + data.count(b"{") > MAX_NESTING)
    ):
        return decode_tolerant(data)
    time = wire.time
    return Alert(
        wire.rule,
        wire.priority,
        wire.source or DEFAULT_SOURCE,
        wire.hostname,
        wire.output,
        wire.tags,
        0 if time is _UNSET else _time_ns(time),
        data,
        fields,
    )


def decode_tolerant(data: bytes) -> Alert:
    """`decode` by the tolerant way alone, for at most MAX_ALERT bytes: the same result, slower. Raises AlertError."""
    sent = read_alert(data)
    text = sent.text.get
    tags = tuple(tag for tag in sent.tags if isinstance(tag, str))
    return Alert(
        rule=text("rule", ""),
        priority_text=text("priority", ""),
        source=text("source") or DEFAULT_SOURCE,
        hostname=text("hostname", ""),
        sent_output=text("output", ""),
        tags=tags,
        time_ns=sent.time_ns,
        raw=data[sent.start : sent.end],
        held_fields=sent.objects.get("output_fields", {}),
        mixed_tags=() if len(tags) == len(sent.tags) else tuple(sent.tags),
        context=sent.objects.get("context"),
        trace_id=text("trace_id", ""),
    )


def alert_id(alert: Alert, node: str) -> str:
    """32 hex digits that name this alert: Falco gives it no id, and libcurl may send it twice.

    BLAKE2b-128 of (node, source, rule, event time, thread id, fields) as decoded, in one canonical form: the order of
    keys, blanks and escapes don't matter.
    """
    fields = alert.fields
    named = (node, alert.source, alert.rule, alert.time_ns, fields.get("thread.tid"), fields)
    return hashlib.blake2b(_canonical(named), digest_size=16).hexdigest()


_canonical = msgspec.json.Encoder(order="sorted").encode


def _read_fields(raw: msgspec.Raw) -> dict[str, object]:
    """The fast way read past them and found them valid, all but their UTF-8, lone surrogates and number ranges."""
    try:
        fields = _read_object(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return read_object(bytes(raw))
    # msgspec makes the integer 0 of `-0`, which Talon shows as "-0".
    return read_object(bytes(raw)) if b"-0" in bytes(raw) and _MINUS_ZERO.search(raw) else fields


# The start of each second seen lately, by the text before its fraction: alerts come in the order of their times.
_seconds: dict[str, int] = {}
_SECONDS_KEPT = 256


def _time_ns(text: str) -> int:
    """`time_ns` of gojson, quick for what Falco writes: YYYY-MM-DDTHH:MM:SS.nnnnnnnnnZ. Raises AlertError."""
    second = _seconds.get(text[:20])
    digits = text[20:29]
    if second is not None and text[29:] == "Z" and digits.isdecimal() and digits.isascii():
        return second + int(digits)
    since_epoch = time_ns(text)
    # Only after 1970: Go's zero time, which counts as 0, then needs no care above.
    if since_epoch > 0 and text[29:] == "Z" and text[19] == ".":
        _remember_second(text[:20], since_epoch - int(digits))
    return since_epoch


def _remember_second(prefix: str, second: int) -> None:
    if len(_seconds) >= _SECONDS_KEPT:
        _seconds.clear()
    _seconds[prefix] = second
