"""Where bundles were sent, are to be sent, or could not be: from the journal and what still waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stoop.delivery_files import delivery_files
from stoop.errors import UserError

Told = dict[str, list[dict[str, Any]]]
"""By bundle: `state` (sent, waiting, failed), `output`, `object`, `reason` of each delivery."""


def deliveries(state_dir: str) -> Told:
    """Of all bundles. Without a journal only what waits is known."""
    from stoop import history

    told: Told = {}
    try:
        for record in history.deliveries(state_dir):
            details = record["details"]
            state = "sent" if record["outcome"] == "done" else "failed"
            one = {"state": state, "output": details.get("output"), "object": details.get("object")}
            told.setdefault(str(details.get("bundle")), []).append(one | {"reason": record["reason"]})
    except UserError:
        pass
    for waiting in delivery_files(Path(state_dir)).look()[0]:
        one = {"state": "waiting", "output": waiting.target, "object": waiting.place, "reason": ""}
        told.setdefault(waiting.bundle, []).append(one)
    return told


def line_of(told: list[dict[str, Any]]) -> str:
    """` · sent to aws:s3 evidence/NAME`, and so on; "" for a bundle that goes nowhere."""
    words = {"sent": "sent to", "waiting": "waits to be sent to", "failed": "could not be sent to"}
    said = (f" · {words[one['state']]} {one['output']} {one['object']}" for one in told)
    return "".join(said)
