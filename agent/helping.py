"""The helper's tasks: check rules, write the log, watch the reflex, serve /metrics and health.

    reader ─┬─ RulesSource ──▶ rules task ──▶ RulesBegin, RuleReady…, RulesEnd | RulesRejected
            ├─ Recorded, LogLine ──▶ line writer ──▶ standard error
            ├─ PodsWanted ──▶ pods' source ──▶ PodKnown…, PodsListed
            └─ SnapshotReply ──▶ ReflexPeer ──▶ pages
It ends with the socket: what is left of the log is written within GOODBYE_SECONDS.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import random
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import trio

from agent import record_line
from agent.line_writer import LineWriter
from agent.pages import Pages
from agent.reflex_peer import ReflexPeer
from agent.serve_metrics import Server, listen
from stoop import log, rules
from stoop.catalogue import CATALOGUE
from stoop.errors import RulesError, StartRefused
from stoop.wire import (
    AnyMessage,
    FrameReader,
    Hello,
    LogLine,
    PodsKey,
    PodsNow,
    PodsWanted,
    Recorded,
    RuleReady,
    RulesBegin,
    RulesEnd,
    RulesRejected,
    RulesSource,
    Serving,
    SnapshotReply,
    WireError,
)

if TYPE_CHECKING:
    from agent.pods.source import Source

HEARTBEAT_SECONDS = 5.0
"""How often the reflex is asked when nobody else asks, ± a fifth so that no two agents keep step."""

GOODBYE_SECONDS = 0.7
"""For the last log lines once the reflex has gone: the whole end takes less than 1 s."""

BIND_AGAIN_SECONDS = 30.0
"""Until the metrics port is tried once more, when another program has it. An earlier helper lets go within a second."""

READ_BYTES = 64 * 1024

BUGS = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a fault of the loader itself would raise. The files are rejected then: ending would only begin the same anew."""


class Helper:
    """One connection to one reflex."""

    def __init__(self, sock: socket.socket, log_fd: int) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._lines = LineWriter(log_fd, told=_tell_of_drops)
        self._reflex = ReflexPeer(self._stream)
        self._source: RulesSource | None = None
        self._source_came = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._greeted = False
        self._pods: Source | None = None
        self._pods_told = True

    async def run(self, remarks: tuple[str, ...] = ()) -> int:
        """Serve until the reflex closes the socket. `remarks` are for the log. Gives the exit code."""
        log.configure("auto", write=self._lines.put)
        for remark in remarks:
            log.get().warning("helper", problem=remark)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._lines.run)
            nursery.start_soon(self._reflex.run)
            nursery.start_soon(self._check_rules)
            nursery.start_soon(self._heartbeat)
            code = await self._read()
            with trio.move_on_after(GOODBYE_SECONDS):
                await self._lines.drained()
            nursery.cancel_scope.cancel()
        return code

    async def _read(self) -> int:
        reader = FrameReader()
        try:
            while data := await self._stream.receive_some(READ_BYTES):
                for message in reader.feed(data):
                    self._take(message)
                await self._lines.room()
        except trio.BrokenResourceError:
            return 0
        except WireError as error:
            log.get().error("the reflex does not speak the helper's protocol", problem=str(error))
            return 1
        return 0

    def _take(self, message: AnyMessage) -> None:
        if isinstance(message, Recorded):
            self._log_record(message)
        elif isinstance(message, SnapshotReply):
            self._reflex.take(message)
        elif isinstance(message, LogLine):
            _log_line(message)
        elif isinstance(message, RulesSource):
            self._source = message
            self._source_came.set()
        elif isinstance(message, PodsWanted | PodsKey | PodsNow):
            self._take_pods(message)
        elif isinstance(message, Hello) and not self._greeted:
            self._greeted = True
            self._greet(message)

    def _take_pods(self, message: PodsWanted | PodsKey | PodsNow) -> None:
        if isinstance(message, PodsWanted) and self._pods is None and self._nursery is not None:
            # Imported before the rights went, where the reflex said so (agent/helper.py).
            from agent.pods.source import Source

            self._pods = Source(message, self._reflex.post, _give_back_memory)
            self._nursery.start_soon(self._pods.run)
        elif isinstance(message, PodsKey) and self._pods is not None:
            self._pods.take_key(message)
        elif self._pods is not None:
            self._pods.ask_now()

    def _greet(self, hello: Hello) -> None:
        self._pods_told = hello.pods_told
        log.configure(hello.log_format, write=self._lines.put)
        if hello.metrics_address and self._nursery is not None:
            self._nursery.start_soon(self._serve, hello)

    @staticmethod
    def _log_record(message: Recorded) -> None:
        record = message.record
        getattr(log.get(), record_line.level_of(record))(record_line.EVENT, **record_line.fields_of(record))

    # ------------------------------------------------------------ rules

    async def _check_rules(self) -> None:
        """Answer the newest files; those superseded before their turn are not answered."""
        while True:
            await self._source_came.wait()
            self._source_came = trio.Event()
            source, self._source = self._source, None
            if source is not None:
                self._reflex.post(*checked(source, pods_told=self._pods_told))
                del source
                _give_back_memory()

    # ------------------------------------------------------------ health and metrics

    async def _heartbeat(self) -> None:
        while True:
            pause = HEARTBEAT_SECONDS * random.uniform(0.8, 1.2)
            if trio.current_time() - self._reflex.asked_at >= pause / 2:
                await self._reflex.ask()
            await trio.sleep(pause)

    async def _serve(self, hello: Hello) -> None:
        address = hello.metrics_address
        listener = None
        while listener is None:
            try:
                listener = await listen(address, hello.metrics_port)
            except StartRefused as error:
                log.get().error("metrics and health are not served, trying again", problem=str(error))
                self._reflex.post(Serving(address, 0, str(error)))
                await trio.sleep(BIND_AGAIN_SECONDS)
        self._reflex.post(Serving(address, listener.socket.getsockname()[1]))
        pages = Pages(self._reflex, hello.version, dropped=lambda: self._lines.dropped)
        await Server(pages.handle).serve(listener)


def checked(source: RulesSource, *, pods_told: bool = True) -> Iterator[AnyMessage]:
    """The answer to these files: the finished rules one by one, or every problem.

    `pods_told`: whether something tells labels, annotations and owners; else rules that ask for them are warned of.
    """
    try:
        loaded = rules.load(source.files, CATALOGUE)
    except RulesError as error:
        yield RulesRejected(source.generation, tuple(map(str, error.problems)), tuple(map(str, error.warnings)))
        return
    except BUGS as error:
        log.get().exception("rules could not be checked", exc_info=error)
        why = f"the loader failed ({type(error).__name__}: {error}): this is a fault of Stoop, please report it"
        yield RulesRejected(source.generation, (why,))
        return
    yield RulesBegin(source.generation, len(loaded.rules), loaded.digest)
    for rule in loaded.rules:
        yield RuleReady(source.generation, msgspec.Raw(msgspec.msgpack.encode(rule)))
    yield RulesEnd(source.generation, tuple(map(str, (*loaded.warnings, *(() if pods_told else loaded.metadata)))))


def _log_line(line: LogLine) -> None:
    level = line.level if line.level in log.LEVELS else "info"
    fields = {key: value for key, value in line.fields.items() if key not in ("event", "at_ns")}
    getattr(log.get(), level)(line.event, at_ns=line.at_ns, **fields)


def _tell_of_drops(count: int) -> None:
    log.get().warning("log lines dropped: standard error was not read", count=count)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _give_back_memory() -> None:
    """A thousand rules leave some 20 MiB of freed nodes, which glibc would keep (malloc_trim(3); musl has none)."""
    gc.collect()
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def serve(sock: socket.socket, remarks: tuple[str, ...]) -> int:
    """Run the helper on a connected stream socket until the reflex closes it. Gives the exit code."""
    gc.collect()
    gc.freeze()
    return trio.run(Helper(sock, sys.stderr.fileno()).run, remarks)
