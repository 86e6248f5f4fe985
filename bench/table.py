"""Figures of one row: percentiles, the floor beside them, the goal, and whether it was reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which this part (0 to 1) lies; nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


@dataclass(frozen=True)
class Row:
    """One line of the table. `reached` is None where there is no goal to reach."""

    what: str
    floor: str
    measured: str
    goal: str
    reached: bool | None
    samples: int = 0


def show(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | floor | measured | goal | reached | samples |", "|---|---|---|---|---|---|"]
    mark = {True: "yes", False: "**no**", None: "-"}
    lines += [
        f"| {row.what} | {row.floor} | {row.measured} | {row.goal} | {mark[row.reached]} | {row.samples} |"
        for row in rows
    ]
    return "\n".join(lines)


def ms(seconds: float) -> str:
    """Milliseconds with two digits."""
    return f"{seconds * 1000:.2f} ms"
