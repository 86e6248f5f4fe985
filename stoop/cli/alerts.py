"""Alerts out of a file: NDJSON (Falco's file_output), one pretty-printed JSON value, or a JSON list of alerts."""

from __future__ import annotations

import codecs
import json
import time

import msgspec

from stoop.log import timestamp


def split(data: bytes) -> list[bytes]:
    """The alerts in these bytes, each as its own bytes on one line.

    Lines are taken as they are, good or bad, unless the whole is one JSON value (written over several lines). A byte
    order mark, which some editors put first, is no part of them.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    lines = [stripped for line in data.splitlines() if (stripped := line.strip())]
    if len(lines) > 1 and not _is_json(lines[0]):
        try:
            whole = msgspec.json.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return lines
        # Numbers stay as they were written: only blanks and line breaks between tokens go.
        values = msgspec.json.decode(data, type=list[msgspec.Raw]) if isinstance(whole, list) else [msgspec.Raw(data)]
        return [msgspec.json.format(bytes(value), indent=-1) for value in values]
    if len(lines) == 1 and lines[0].startswith(b"["):
        try:
            return [bytes(value) for value in msgspec.json.decode(lines[0], type=list[msgspec.Raw])]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return lines
    return lines


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def at_now(alert: bytes) -> bytes:
    """The same alert with `time` and its time fields set to now. What is not a JSON object stays as it is."""
    try:
        value = json.loads(alert)
    except (ValueError, RecursionError):
        return alert
    if not isinstance(value, dict):
        return alert
    now_ns = time.time_ns()
    value["time"] = f"{timestamp(now_ns)[:-1]}{now_ns % 1000:03d}Z"
    fields = value.get("output_fields")
    if isinstance(fields, dict):
        for name in ("evt.time", "evt.time.iso8601", "evt.rawtime"):
            if name in fields:
                fields[name] = now_ns
    return json.dumps(value, separators=(",", ":")).encode()
