"""Log lines to real pipes: in order, never waiting, and counted when they are lost."""

from __future__ import annotations

import os

import trio

from agent.line_writer import MAX_WAITING, STALL_SECONDS, LineWriter

PATIENCE = 20.0
LINE = "x" * 99 + "\n"


class Told:
    def __init__(self) -> None:
        self.counts: list[int] = []


async def read_all(descriptor: int) -> bytes:
    """Everything until the writing end closes."""
    parts = []
    while part := await trio.to_thread.run_sync(os.read, descriptor, 65536):
        parts.append(part)
    os.close(descriptor)
    return b"".join(parts)


async def test_lines_arrive_whole_and_in_order() -> None:
    reading, writing = os.pipe()
    lines = LineWriter(writing, told=Told().counts.append)
    found: list[bytes] = []

    async def read() -> None:
        found.append(await read_all(reading))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as reader:
            reader.start_soon(read)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lines.run)
                for number in range(20_000):
                    lines.put(f"line {number} é\ud800\n")
                    await lines.room()
                await lines.drained()
                nursery.cancel_scope.cancel()
            os.close(writing)
    assert found[0].decode().splitlines() == [f"line {number} é\\ud800" for number in range(20_000)]
    assert lines.dropped == 0


async def test_a_pipe_that_nobody_reads_loses_lines_and_says_so_later() -> None:
    reading, writing = os.pipe()
    told = Told()
    lines = LineWriter(writing, told=told.counts.append)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lines.run)
            for _ in range(2 * MAX_WAITING // len(LINE)):
                lines.put(LINE)
            await lines.room()
            began = trio.current_time()
            for _ in range(100):
                await lines.room()
            assert trio.current_time() - began < STALL_SECONDS
            assert lines.dropped > 0
            assert told.counts == []
            while not told.counts:
                await trio.to_thread.run_sync(os.read, reading, 65536)
            assert told.counts == [lines.dropped]
            nursery.start_soon(read_all, reading)
            await lines.drained()
            os.close(writing)
            nursery.cancel_scope.cancel()


async def test_a_closed_pipe_counts_what_it_loses() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    lines = LineWriter(writing, told=Told().counts.append)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lines.run)
            for _ in range(3):
                lines.put(LINE)
            await lines.drained()
            assert lines.dropped == 3
            nursery.cancel_scope.cancel()
    os.close(writing)
