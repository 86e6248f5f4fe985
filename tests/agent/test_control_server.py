"""The agent's side of the control socket, on a real unix socket, asked from threads and by strangers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from agent.control import MAX_CONNECTIONS, MAX_UNREAD, ControlServer, Followers
from stoop.control import MAX_REQUEST, AnyRequest, Arm, ControlError, Follow, SetMode, Status, Subscribe, ask
from stoop.control import encode_request as encoded
from stoop.record import Record, Timing
from stoop.spec import (
    Mode,
    Verdict,
)

PATIENCE = 10.0
RECORD = Record(
    alert="a1",
    run="r1",
    act="c1",
    rule="Kill a shell",
    action="Kill it",
    actionner="process:kill",
    verdict=Verdict.DONE,
    reason="",
    target={"pid": 4711},
    timing=Timing(event_ns=1_000_000, received_ns=1_200_000, acted_ns=1_500_000),
)


class Agent:
    """Answers what the tests ask."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.asked: list[AnyRequest] = []
        self.followers = Followers()

    async def answer(self, request: AnyRequest) -> Any:
        self.asked.append(request)
        if isinstance(request, Arm):
            raise ControlError(f"rule {request.rule!r} is not disarmed", hint="look")
        return {"mode": "enforce"}

    async def ask(self, request: AnyRequest) -> Any:
        return await trio.to_thread.run_sync(ask, self.path, request, PATIENCE)

    async def joined(self) -> trio.SocketStream:
        """A follower whose subscription was answered."""
        stream = await trio.open_unix_socket(self.path)
        await stream.send_all(encoded(Subscribe()))
        assert b'"following"' in await stream.receive_some(MAX_REQUEST)
        return stream


@asynccontextmanager
async def serving(tmp_path: Path) -> AsyncIterator[Agent]:
    agent = Agent(str(tmp_path / "control.sock"))
    with trio.fail_after(3 * PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(ControlServer(agent.path, agent.answer, agent.followers).serve)
            yield agent
            nursery.cancel_scope.cancel()


async def test_questions_are_answered_also_several_on_one_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as agent:
        assert await agent.ask(Status()) == {"mode": "enforce"}
        stream = await trio.open_unix_socket(agent.path)
        async with stream:
            await stream.send_all(encoded(Status()) + encoded(SetMode(Mode.OBSERVE, 60.0)))
            got = b""
            while got.count(b"\n") < 2:
                got += await stream.receive_some(MAX_REQUEST)
        assert agent.asked[1:] == [Status(), SetMode(Mode.OBSERVE, 60.0)]


async def test_a_no_is_told_as_one_line(tmp_path: Path) -> None:
    async with serving(tmp_path) as agent:
        with pytest.raises(ControlError, match="rule 'x' is not disarmed"):
            await agent.ask(Arm("x"))


async def test_the_socket_is_its_owner_s_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as agent:
        assert os.stat(agent.path).st_mode & 0o777 == 0o600
    with pytest.raises(FileNotFoundError):
        os.stat(agent.path)


@pytest.mark.parametrize(
    "sent",
    [
        b"\n",
        b"{}\n",
        b"[1]\n",
        b"\xff\xfe\x00\n",
        b'{"do": "destroy"}\n',
        b'{"do": "mode", "mode": "harder"}\n',
        b'{"do": "mode", "mode": "off", "for_s": -1}\n',
        b'{"do": "mode", "mode": "off", "for_s": 1e999}\n',
        b'{"do": "status", "more": 1}\n',
        b"[" * (MAX_REQUEST - 1) + b"\n",
        b"x" * (MAX_REQUEST + 1),
        b"x" * 1_000_000,
    ],
)
async def test_hostile_input_gets_a_no_and_hurts_nobody(tmp_path: Path, sent: bytes) -> None:
    async with serving(tmp_path) as agent:
        stream = await trio.open_unix_socket(agent.path)
        async with stream:
            try:
                await stream.send_all(sent)
                assert b'"ok":false' in await stream.receive_some(MAX_REQUEST)
            except trio.BrokenResourceError:
                assert len(sent) > MAX_REQUEST  # closed in the middle of what is too long
        assert not agent.asked
        assert await agent.ask(Status())


@pytest.mark.parametrize("sent", [b"", b'{"do":', encoded(Status()), encoded(Subscribe())])
async def test_one_who_goes_in_the_middle_hurts_nobody(tmp_path: Path, sent: bytes) -> None:
    async with serving(tmp_path) as agent:
        for _ in range(2 * MAX_CONNECTIONS):
            with socket.socket(socket.AF_UNIX) as rude:
                rude.connect(agent.path)
                rude.sendall(sent)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await agent.ask(Status())


async def test_no_more_than_so_many_at_a_time(tmp_path: Path) -> None:
    async with serving(tmp_path) as agent:
        streams = [await agent.joined() for _ in range(MAX_CONNECTIONS)]
        extra = await trio.open_unix_socket(agent.path)
        async with extra:
            assert await extra.receive_some(1) == b""
        for stream in streams:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await agent.ask(Status())


# In a program of its own, since it takes all descriptors away.
NO_DESCRIPTORS = """
import resource, socket, sys, trio, trio.testing
from agent.control import ControlServer, Followers
async def main():
    async with trio.open_nursery() as nursery:
        await nursery.start(ControlServer(sys.argv[1], lambda request: None, Followers()).serve)
        client = socket.socket(socket.AF_UNIX)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
        client.connect(sys.argv[1])
        await trio.testing.wait_all_tasks_blocked(0.05)
        print("alive")
        nursery.cancel_scope.cancel()
trio.run(main)
"""


def test_no_descriptor_left_for_a_question_does_not_end_the_agent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NO_DESCRIPTORS, str(tmp_path / "control.sock")]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=50, check=False)
    assert ended.stdout == "alive\n", ended.stderr


class TestFollow:
    async def test_each_record_comes(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as agent:
            follow = Follow(agent.path)
            await trio.to_thread.run_sync(follow.__enter__)
            agent.followers.put(RECORD)
            agent.followers.put(RECORD)
            got: list[dict[str, Any]] = []
            while len(got) < 2:
                got += await trio.to_thread.run_sync(follow.read, PATIENCE)
            assert [record["act"] for record in got] == ["c1", "c1"]
            assert got[0]["outcome"] == "done"
            assert (follow.lost, follow.closed) == (0, False)
            follow.__exit__()

    async def test_one_that_does_not_read_loses_lines_and_is_told(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as agent:
            follow = Follow(agent.path)
            await trio.to_thread.run_sync(follow.__enter__)
            sent = 20 * MAX_UNREAD
            for _ in range(sent):
                agent.followers.put(RECORD)
                await trio.lowlevel.checkpoint()
            got = 0
            while got + follow.lost < sent:
                got += len(await trio.to_thread.run_sync(follow.read, PATIENCE))
            assert follow.lost
            assert got >= MAX_UNREAD
            assert got + follow.lost == sent
            follow.__exit__()

    async def test_the_end_of_the_server_ends_it(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as agent:
            follow = Follow(agent.path)
            await trio.to_thread.run_sync(follow.__enter__)
        assert await trio.to_thread.run_sync(follow.read, PATIENCE) == []
        assert follow.closed
        follow.__exit__()

    async def test_one_that_goes_with_lines_unread_hurts_nobody(self, tmp_path: Path) -> None:
        """Closing with unread data is a reset for the other side (unix(7)): an error, where an end was awaited."""
        async with serving(tmp_path) as agent:
            stream = await agent.joined()
            agent.followers.put(RECORD)
            await trio.testing.wait_all_tasks_blocked(0.01)
            stream.socket.close()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert await agent.ask(Status())

    async def test_one_that_goes_while_lines_are_sent_hurts_nobody(self, tmp_path: Path) -> None:
        async with serving(tmp_path) as agent:
            stream = await agent.joined()
            for _ in range(5 * MAX_UNREAD):
                agent.followers.put(RECORD)
                await trio.lowlevel.checkpoint()
            stream.socket.close()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert await agent.ask(Status())
