"""The agent's side of the control socket (`stoop/control.py` says what is spoken there).

Only root and the agent's own user may ask, by file mode and by SO_PEERCRED. A follower that does not read loses lines,
counted, and never holds up an act.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from stoop.control import (
    MAX_REQUEST,
    AnyRequest,
    ControlError,
    Lines,
    Reply,
    Subscribe,
    decode_request,
    encode_record,
    encode_reply,
)
from stoop.errors import StoopError
from stoop.intake.unixsocket import credentials, listen_unix, unlink_own
from stoop.record import Record

MAX_CONNECTIONS = 16
"""People and scripts that ask at the same time; the next one is closed at once."""

REQUEST_SECONDS = 30.0
"""How long a connection may be silent between two requests."""

ANSWER_SECONDS = 10.0
"""How long a client may take to read its answer; one that does not is dropped, for others want to ask."""

NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
NO_ROOM_SECONDS = 0.2
"""How long accepting pauses when no descriptor is left (accept(2))."""

MAX_UNREAD = 1000
"""Records kept for one follower that does not read."""

Answer = Callable[[AnyRequest], Awaitable[Any]]


class Followers:
    """Who wants to see each record as it comes. `put` is a sink of the recorder: it never waits."""

    def __init__(self) -> None:
        self._queues: set[Follower] = set()

    def put(self, record: Record) -> None:
        """Hand a record to each follower."""
        if self._queues:
            line = encode_record(record.public())
            for queue in self._queues:
                queue.put(line)

    def join(self) -> Follower:
        """One more follower."""
        follower = Follower()
        self._queues.add(follower)
        return follower

    def leave(self, follower: Follower) -> None:
        """One less."""
        self._queues.discard(follower)


class Follower:
    """The lines that one follower has yet to be sent; the oldest are dropped when there are too many."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=MAX_UNREAD)
        self._some = trio.Event()
        self._lost = 0

    def put(self, line: bytes) -> None:
        """One more line."""
        self._lost += len(self._lines) == MAX_UNREAD
        self._lines.append(line)
        self._some.set()

    async def take(self) -> bytes:
        """All lines of now, at least one. What was lost is told first."""
        await self._some.wait()
        self._some = trio.Event()
        data = b"".join(self._lines)
        self._lines.clear()
        if self._lost:
            data = b'{"lost": %d}\n' % self._lost + data
            self._lost = 0
        return data


class ControlServer:
    """Listens at `path`; `answer` gives the result of a request or raises StoopError."""

    def __init__(self, path: str, answer: Answer, followers: Followers) -> None:
        self._path = path
        self._answer = answer
        self._followers = followers
        self._open = 0

    async def serve(self, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Raises StartRefused when another agent listens there."""
        sock, own = listen_unix(self._path, 0o600, "control.path")
        try:
            async with trio.open_nursery() as nursery:
                task_status.started(self._path)
                listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
                while True:
                    try:
                        stream = await listener.accept()
                    except OSError as error:
                        if error.errno not in NO_ROOM:
                            raise
                        await trio.sleep(NO_ROOM_SECONDS)  # whoever asks waits in the backlog
                        continue
                    if self._open >= MAX_CONNECTIONS:
                        await stream.aclose()
                        continue
                    nursery.start_soon(self._serve_one, stream)
        finally:
            sock.close()
            unlink_own(self._path, own)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        self._open += 1
        try:
            async with stream:
                _, uid = credentials(stream.socket)
                if uid in (0, os.geteuid()):
                    await self._talk(stream)
                else:
                    await stream.send_all(encode_reply(Reply(False, error=f"user {uid} may not control this agent")))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it went away in the middle: nothing is lost
        finally:
            self._open -= 1

    async def _talk(self, stream: trio.SocketStream) -> None:
        lines = Lines(MAX_REQUEST)
        while True:
            with trio.move_on_after(REQUEST_SECONDS) as patience:
                data = await stream.receive_some(MAX_REQUEST)
            if patience.cancelled_caught or not data:
                return
            try:
                for line in lines.feed(data):
                    if await self._reply(stream, line):
                        return
            except ControlError as error:
                await stream.send_all(encode_reply(Reply(False, error=str(error))))
                return

    async def _reply(self, stream: trio.SocketStream, line: bytes) -> bool:
        """Answer one request; True when the connection has ended."""
        try:
            request = decode_request(line)
            if isinstance(request, Subscribe):
                await self._follow(stream)
                return True
            reply = Reply(True, result=await self._answer(request))
        except StoopError as error:
            reply = Reply(False, error=str(error))
        with trio.move_on_after(ANSWER_SECONDS) as patience:
            await stream.send_all(encode_reply(reply))
        return patience.cancelled_caught

    async def _follow(self, stream: trio.SocketStream) -> None:
        follower = self._followers.join()
        try:
            await stream.send_all(encode_reply(Reply(True, result={"following": True})))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_closed, stream, nursery.cancel_scope)
                nursery.start_soon(_send_lines, stream, follower, nursery.cancel_scope)
        finally:
            self._followers.leave(follower)


async def _until_closed(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    with contextlib.suppress(trio.BrokenResourceError):  # it went with lines unread
        while await stream.receive_some(MAX_REQUEST):
            pass
    scope.cancel()


async def _send_lines(stream: trio.SocketStream, follower: Follower, scope: trio.CancelScope) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        while True:
            await stream.send_all(await follower.take())
    scope.cancel()


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as the JSON of `status` shows it: keys with nothing in them are left out."""
    return {key: inner for key, inner in value.items() if inner not in ("", None)}
