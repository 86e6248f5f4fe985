"""What is to be sent of a bundle, where, and under which name; when it is tried again, and when given up. Pure.

Times: `now_ns` is CLOCK_REALTIME, seconds are on CLOCK_MONOTONIC. Names and reasons: docs/decisions/0014-outputs.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from stoop.record import Record
from stoop.rules.model import OutputForm

MAX_DELIVERIES = 256
"""That wait at a time; each keeps its bundle from being let go of first. A store that is dead for days on a node with
more is told in each record."""

MAX_AGE_NS = 7 * 24 * 3600 * 10**9
"""After which one is given up: a store that was dead so long is not about to come back, and evidence of last week is
in the node's own store for as long as that keeps it."""

RETRY_SECONDS = (2.0, 10.0, 60.0, 300.0, 900.0)
"""Pauses of one store after tries that failed because of the way to it; the last one stays."""

RETRY_SLOWLY_SECONDS = (60.0, 600.0, 3600.0)
"""The same where a person has to mend something: wrong credentials, a bucket that is not there."""

JITTER = (0.7, 1.3)
"""Each pause times a number of these bounds: the nodes of a cluster must not come back to a store in step."""

MAX_NAME = 255
"""Bytes of an object's name: what a file's may have (NAME_MAX), so that every store takes the same."""

MAX_WORD = 75
"""Characters of the pod's name and of the data's in it: with time, namespace (63) and id they stay below MAX_NAME."""

ID_DIGITS = 12
"""Of the act's id, in an object's name: two acts of one second on one pod differ in it."""

WHOLE = ".tar.zst"
"""What a whole bundle is called beyond its own name."""

_ODD = re.compile(r"[^A-Za-z0-9._=@+,-]")
# Safe in every store, file system and shell; none of them is a path's end, a glob or a format.
_ID = re.compile(r"[0-9a-f]{8,64}")
_BUNDLE = re.compile(r"[0-9]{8,16}-[0-9]{8}T[0-9]{6}Z-[0-9a-z]{1,32}", re.ASCII)


class Delivery(msgspec.Struct, frozen=True):
    """One thing to be sent, kept on disk until it was, or was given up.

    `part`: the bundle's part that is sent, "" for the whole bundle. `target`, `parameters`: of the rule's output.
    `name`: of the object, without the output's prefix. `shown`: what a person is told of the act's target.
    """

    act: str
    run: str
    alert: str
    rule: str
    action: str
    actionner: str
    bundle: str
    part: str
    target: str
    parameters: dict[str, Any]
    name: str
    made_ns: int
    shown: dict[str, Any] = {}

    @property
    def key(self) -> str:
        """Its file's name: the bundle first, so that the evidence store sees whose turn to go is not yet."""
        return f"{self.bundle}.{self.act}"

    @property
    def store(self) -> str:
        """Whom it goes to: those of one store are tried one after the other, and wait together while it is dead."""
        words = [str(self.parameters.get(word, "")) for word in ("bucket", "region", "destination")]
        return " ".join([self.target, *filter(None, words)])

    @property
    def object(self) -> str:
        """The object's whole name, with the output's prefix; slashes around it are taken off, as in Talon."""
        prefix = str(self.parameters.get("prefix") or "").strip("/")
        return f"{prefix}/{self.name}" if prefix else self.name

    @property
    def place(self) -> str:
        """Where it ends up, for a person."""
        where = str(self.parameters.get("bucket") or self.parameters.get("destination") or "").rstrip("/")
        return f"{where}/{self.object}"

    def is_old(self, now_ns: int) -> bool:
        """Whether it is given up."""
        return now_ns - self.made_ns > MAX_AGE_NS


def is_sound(delivery: Delivery) -> bool:
    """Whether its names can be used in paths: what was read from a file may be anything."""
    return bool(_ID.fullmatch(delivery.act) and _BUNDLE.fullmatch(delivery.bundle)) and is_object_name(delivery.name)


def is_object_name(name: str) -> bool:
    """Whether it is a name as `object_name` makes them."""
    return 0 < len(name) <= MAX_NAME and not _ODD.search(name) and not name.startswith(".")


def delivery_of(record: Record, output: OutputForm, node: str) -> Delivery | None:
    """What is to be sent of this act; None where it left nothing. Reads `details.bundle`, `details.data` (`part`,
    `name`: which part is Talon's data), and `details.evidence.bundle` of evidence that was taken first."""
    details = record.details
    first = details.get("evidence")
    bundle = details.get("bundle") or (first.get("bundle") if isinstance(first, Mapping) else None)
    if not isinstance(bundle, str) or not _BUNDLE.fullmatch(bundle):
        return None
    data = details.get("data") if details.get("bundle") else None
    part, named = "", f"{bundle}{WHOLE}"
    if isinstance(data, Mapping) and data.get("part"):
        part, named = str(data["part"]), str(data.get("name") or data["part"])
        folder = str(details.get("folder") or "")  # of a run's later captures, in the run's bundle
        if folder and not part.startswith(folder.rstrip("/") + "/"):
            part = f"{folder.rstrip('/')}/{part}"
    return Delivery(
        act=record.act,
        run=record.run,
        alert=record.alert,
        rule=record.rule,
        action=record.action,
        actionner=record.actionner,
        bundle=bundle,
        part=part,
        target=output.target,
        parameters=output.parameters,
        name=object_name(record, named, node),
        made_ns=record.at_ns,
        shown=record.target,
    )


def object_name(record: Record, named: str, node: str) -> str:
    """`TIME_NAMESPACE_POD_ID_NAME`, or `TIME_NODE_ID_NAME` where the pod is not known. TIME is UTC.

    Talon's form, and the act's id in it: there two captures of one pod within a second become one object.
    """
    at = datetime.fromtimestamp(record.at_ns // 10**9, UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    namespace, pod = str(record.target.get("namespace") or ""), str(record.target.get("pod") or "")
    whom = [namespace, pod] if namespace and pod else [node]
    words = [at, *(plain(word) for word in whom), record.act[:ID_DIGITS], plain(named, tail=True)]
    return "_".join(words)


def plain(word: str, *, tail: bool = False) -> str:
    """The word with everything odd in it replaced, at most MAX_WORD long; `tail`: its end is what counts."""
    safe = _ODD.sub("_", word)
    if len(safe) <= MAX_WORD:
        return safe
    mark = hashlib.sha256(word.encode(errors="surrogatepass")).hexdigest()[:8]
    kept = MAX_WORD - len(mark) - 1
    return f"{mark}-{safe[-kept:]}" if tail else f"{safe[:kept]}-{mark}"


def pause_s(tries: int, slowly: bool, chance: float) -> float:
    """Seconds until a store is tried again after so many tries in a row (from 1). `chance`: from 0 to 1."""
    pauses = RETRY_SLOWLY_SECONDS if slowly else RETRY_SECONDS
    least, most = JITTER
    return pauses[min(tries, len(pauses)) - 1] * (least + (most - least) * chance)
