"""One thing of a bundle into one bucket: streamed, hashed on the way, and told as one of four fates."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from agent.carry.stores import CHUNK, Access, AccessError
from agent.carry.sts import StsError
from agent.letters import Fate, Send, Sent
from stoop.evidence.content import Content, content_of
from stoop.evidence.reading import BundleError

MAX_PARTS = 9000
"""Requests of one object: S3 takes 10,000 parts. What is longer is sent in larger ones."""

MAX_REASON = 300
"""Characters of what a store answered."""

TYPE = "application/octet-stream"
"""What was captured is data: no browser is to show or run it."""

HASH = "sha256"
"""The object's metadata with its SHA-256, as in the manifest."""

_STATUS = re.compile(r"status code: 4(?!08|29)[0-9][0-9]")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_ASKED = re.compile(r"Error performing [A-Z]+ \S+ in \S+ - ")
# obstore's words before a store's own: method, URL, time.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class _TooLate(Exception):
    """The deadline has passed."""


def put(access: Access, send: Send, fd: int, hidden: tuple[str, ...]) -> Sent:
    """Send it. Raises nothing for what becomes of it. `hidden`: texts that no reason may show."""
    deadline = time.monotonic() + send.deadline_s
    try:
        content = content_of(fd, send.part)
        already = _put(access, send, content, deadline)
    except BundleError as error:
        return Sent(send.id, Fate.NEVER, f"the bundle is not as it was written: {error}")
    except AccessError as error:
        return Sent(send.id, Fate.MEND, _hide(str(error), hidden))
    except _TooLate:
        return Sent(send.id, Fate.LATER, f"it was not done within {send.deadline_s:.0f} s")
    except _errors() as error:
        return Sent(send.id, *_fate(error, hidden))
    return Sent(send.id, Fate.SENT, "it was there already" * already, content.size, content.sha256)


def _errors() -> tuple[type[Exception], ...]:
    """What obstore raises: its own, and those of Python's that it takes for a missing bucket or a broken file."""
    from obstore.exceptions import BaseError

    return (BaseError, OSError, ValueError, StsError)


def _put(access: Access, send: Send, content: Content, deadline: float) -> bool:
    """Whether it was there already. Raises as obstore does, and what the pieces raise."""
    import obstore
    from obstore.exceptions import AlreadyExistsError

    store = access.store(send.target, send.bucket, send.region)
    attributes: dict[str, str] = {"Content-Type": TYPE, HASH: content.sha256}
    if content.size > CHUNK:
        size = max(CHUNK, -(-content.size // MAX_PARTS))
        pieces = _in_time(content.pieces, deadline)
        obstore.put(
            store, send.object, pieces, attributes=attributes, use_multipart=True, chunk_size=size, max_concurrency=1
        )
        return False
    data = b"".join(content.pieces)
    # Google asks for the right to delete of whoever overwrites: there what an earlier try left is left.
    mode: dict[str, Any] = {"mode": "create"} if send.target == "gcp:gcs" else {}
    try:
        obstore.put(store, send.object, data, attributes=attributes, use_multipart=False, **mode)
    except AlreadyExistsError:
        return True
    return False


def _in_time(pieces: Iterator[bytes], deadline: float) -> Iterator[bytes]:
    for piece in pieces:
        if time.monotonic() > deadline:
            raise _TooLate
        yield piece


def _fate(error: Exception, hidden: tuple[str, ...]) -> tuple[Fate, str]:
    """What an error of a store means for whoever waits, and one line of it."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    text = str(error)
    code, asked = _CODE.search(text), _ASKED.search(text)
    said = text[asked.end() :] if asked else text
    said = _CONTROL.sub(" ", said.partition("<?xml")[0].partition("\n\nDebug source")[0]).strip(" :")
    if "kind: Connect" in text:
        said = f"it can't be reached: {said}"
    said = f"{said[:MAX_REASON]}{f' ({code[1]})' if code else ''}"
    mend = isinstance(error, PermissionDeniedError | UnauthenticatedError | FileNotFoundError | ValueError | StsError)
    if isinstance(error, StsError) and "does not answer" in text:
        mend = False
    return Fate.MEND if mend or _STATUS.search(text) else Fate.LATER, _hide(said, hidden)


def _hide(text: str, hidden: tuple[str, ...]) -> str:
    for secret in hidden:
        text = text.replace(secret, "***")
    return text
