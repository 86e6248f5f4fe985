"""Where Stoop differs from Talon on purpose on cases that no `quirk` marks. Each is a row of docs/talon.md.

Kept to what follows from a decision of design.md or of an issue; anything else that deviates has failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tools.conformance_decode import LISTED_DEVIATIONS


class Listed(NamedTuple):
    """One decision: the words of docs/talon.md, and which deviations it explains, from the case and Stoop's codes."""

    reason: str
    explains: Callable[[dict[str, Any], tuple[str, ...]], bool]


def _is_guarded(case: dict[str, Any], codes: tuple[str, ...]) -> bool:
    return case["kind"] != "decode" and bool(codes) and set(codes) == {"match-all"}


def _decodes_otherwise(word: str) -> Callable[[dict[str, Any], tuple[str, ...]], bool]:
    return lambda case, codes: case["kind"] == "decode" and codes == (word,)


DEVIATIONS = (
    Listed("match-all guard: a rule that matches every alert and destroys must say match_all: true", _is_guarded),
    *(Listed(reason, _decodes_otherwise(word)) for word, reason in LISTED_DEVIATIONS.items()),
)


def listed_reason(case: dict[str, Any], codes: tuple[str, ...]) -> str:
    """Why a deviation is meant, or the empty text."""
    return next((listed.reason for listed in DEVIATIONS if listed.explains(case, codes)), "")
