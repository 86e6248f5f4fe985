"""Text that is data, made safe to show: nothing in it moves a cursor, hides or reorders text. Pure."""

from __future__ import annotations

import re

_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# str.isprintable() is false for control (C0, C1), format (all bidirectional marks, zero-width characters, tags),
# surrogate, private, unassigned and separator characters. These show nothing although Unicode calls them letters or
# marks: joiners, Hangul and Braille blanks, variation selectors.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def printable(text: str) -> str:
    """The text with every character that a terminal would obey, hide or reorder as an escape: `\\x1b`, `\\u202e`.

    Line breaks and tabs are escaped too, so that one value stays on its line. Backslashes stay as they are.
    """
    if text.isprintable() and not _INVISIBLE.search(text):
        return text
    return "".join(map(_visible, text))


def _visible(char: str) -> str:
    if char.isprintable() and not _INVISIBLE.match(char):
        return char
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
