"""The deliveries on disk, in `STATE_DIR/deliveries`: written before the act's record is told, removed once sent.

Not synced: the journal's records are not either, and the bundle is. What was sent and not yet removed is sent again,
under the same name and with the same content.
"""

from __future__ import annotations

from pathlib import Path

from stoop.deliveries import MAX_DELIVERIES, Delivery, is_sound
from stoop.evidence.limits import DELIVERIES
from stoop.small_files import Kind, SmallFiles

MAX_FILE = 64 * 1024
"""Bytes: names, a rule's parameters, what a person is told of the target."""

KIND = Kind(
    type=Delivery,
    name="a delivery",
    lost="it is not sent",
    key=lambda delivery: delivery.key,
    most=MAX_DELIVERIES,
    max_bytes=MAX_FILE,
    is_sound=is_sound,
)


def delivery_files(state_dir: Path) -> SmallFiles[Delivery]:
    """Those of one agent."""
    return SmallFiles(state_dir / DELIVERIES, KIND)
