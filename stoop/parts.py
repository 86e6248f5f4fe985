"""What a responder stands on, handed to it as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stoop.engine import Memory
from stoop.evidence_first import NEVER, First
from stoop.holdings import Holdings
from stoop.judge import Judge
from stoop.node import NodeHost
from stoop.recorder import Recorder
from stoop.runs import Clocks
from stoop.spec import (
    Mode,
)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a responder stands on. It owns none of them."""

    node: str
    host: NodeHost
    judge: Judge
    memory: Memory
    recorder: Recorder
    holdings: Holdings
    clocks: Clocks
    mode: Callable[[], Mode]
    act_deadline_s: float
    first: First = NEVER
