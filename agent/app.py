"""`stoop-agent`: the order in which the parts start and stop, and nothing else.

start: state directory, journal → helper, control → rules → responder → intakes → `ready`
stop:  intakes → what is under way, until the grace period ends → responder → control, helper → journal
"""

from __future__ import annotations

import agent.loading  # isort: skip  # noqa: F401 - before trio

import argparse
import faulthandler
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from agent.asked import Asked
from agent.control import ControlServer
from agent.link import Link
from agent.marks import Marks
from agent.reflex import Reflex
from stoop import config as configuration
from stoop.config import DEFAULT_PATH, Config, OnStop
from stoop.errors import StartRefused, UserError
from stoop.intake.file import FileIntake
from stoop.intake.http import HttpIntake
from stoop.intake.stdin import StdinIntake
from stoop.intake.unix import UnixIntake
from stoop.log import printable

GRACE_SECONDS = 8.0
"""What is under way at SIGTERM may finish so long: below the 10 s that `docker stop` gives, far below a pod's 30."""

FIRST_RULES_SECONDS = 30.0
"""The helper starts and checks the rules within 0.5 s; 10,000 rules take some seconds."""

TICK_SECONDS = 1.0
"""How often the reflex looks at what has no event of its own: counts of repeats, the clock."""

WATCHDOG_SECONDS = 30.0
"""A loop that does not come round for so long is stuck: its stacks are dumped and the program ends, to be restarted."""

WATCHDOG_TICKS = 5
"""Ticks between two assurances to the watchdog: it costs a thread each time."""

RECENT_SECONDS = 3600.0
"""How far back acts of an earlier life are remembered where alerts of any age are acted on."""

OPEN_FILES = 65_536
"""Descriptors that the agent may open, where the hard limit allows it."""

SWITCH_INTERVAL = 0.0002
"""Seconds after which the journal's thread gives way when the loop wants the interpreter (Python's default is 5 ms)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent in the foreground until SIGTERM. Returns 0, or 2 for what a person has to mend."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    try:
        config = load_config(arguments.config, arguments.rules, os.environ)
        for warning in config.warnings:
            print(f"stoop-agent: {printable(_warning(warning))}", file=sys.stderr)  # noqa: T201 - there is no log before the helper
        run(config)
    except UserError as error:
        complaints: list[UserError] = [error]
    except BaseExceptionGroup as group:
        complaints = _complaints(group)
    else:
        return 0
    for complaint in complaints:
        for line in (*map(_warning, complaint.warnings), *str(complaint).splitlines()):
            print(f"stoop-agent: {printable(line)}", file=sys.stderr)  # noqa: T201 - the program ends with it
    return 2


def _warning(text: object) -> str:
    return f"warning: {text}"


def _complaints(group: BaseExceptionGroup[BaseException]) -> list[UserError]:
    """What a person has to mend, out of the nurseries' groups. Anything else in them is a bug, and goes on up."""
    mine, rest = group.split(UserError)
    if rest is not None or mine is None:
        raise group
    found: list[UserError] = []
    for error in mine.exceptions:
        found += _complaints(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stoop-agent", description="Stoop's agent: acts on this node for Falco.")
    parser.add_argument("-c", "--config", metavar="FILE", help=f"stoop.yaml (default: {DEFAULT_PATH} if it is there)")
    rules = "rules file, repeatable; replaces rules_files"
    parser.add_argument("-r", "--rules", metavar="FILE", action="append", help=rules)
    return parser.parse_args(argv)


def load_config(path: str | None, rules: Sequence[str] | None, environ: Any) -> Config:
    """The configuration of this process: flags before environment before file before defaults."""
    if path is None:
        path = environ.get("STOOP_CONFIG") or (DEFAULT_PATH if os.path.exists(DEFAULT_PATH) else None)
    return configuration.load(
        path,
        environ,
        is_root=os.geteuid() == 0,
        hostname=socket.gethostname(),
        uid=os.geteuid(),
        overrides={"rules_files": rules} if rules else None,
    )


def run(config: Config) -> None:
    """Open the journal, run the loop, close the journal."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    _raise_open_files()
    reflex = Reflex(config)
    reflex.own.reserve.fill()
    age_s = config.guard.max_alert_age_ns / 1e9
    # An alert that comes again after twice its age has expired in any case; without an age, an hour is remembered.
    recovery = reflex.journal.open(recent_s=2 * age_s or RECENT_SECONDS)
    try:
        reflex.recover(recovery)
        trio.run(live, reflex)
    finally:
        faulthandler.cancel_dump_traceback_later()
        reflex.journal.close()


def _raise_open_files() -> None:
    """A tree may hold 512 pidfds beside 256 connections; the soft limit is 1,024 for the sake of select(2) only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, OPEN_FILES)), hard))


async def live(reflex: Reflex) -> None:
    """Start everything in order, say `ready`, wait for the end, stop in reverse."""
    reflex.enter_loop()
    told = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as base:
            base.start_soon(_heed, signals, reflex, told)
            base.start_soon(reflex.link.serve, reflex.greet)
            control = ControlServer(reflex.config.control.path, Asked(reflex).answer, reflex.followers)
            await base.start(control.serve)
            await _first_rules(reflex, told)
            await base.start(reflex.responder.serve)
            base.start_soon(reflex.serve_network)
            await base.start(reflex.serve_evidence)
            await base.start(reflex.giveback.serve)
            base.start_soon(_tick, reflex)
            base.start_soon(reflex.rule_files.watch, reflex.rules_changed, reflex.warn)
            base.start_soon(reflex.host.follow)
            base.start_soon(reflex.restarts.serve)
            if not told.is_set():
                await _take_in(reflex, told)
            with trio.move_on_after(GRACE_SECONDS) as grace:
                await reflex.responder.idle()
                if reflex.config.on_stop is OnStop.UNDO:
                    await reflex.giveback.undo_all()
            reflex.say("info", "stopping", unfinished=grace.cancelled_caught)
            base.cancel_scope.cancel()


async def _take_in(reflex: Reflex, told: trio.Event) -> None:
    """Run the intakes until told to stop."""
    async with trio.open_nursery() as intakes:
        for name, serve in _intakes(reflex):
            reflex.bound[name] = _shown(await intakes.start(serve))
        reflex.settle_memory()
        intakes.start_soon(reflex.vitals.serve)
        reflex.say("info", "ready", intakes=reflex.bound, mode=str(reflex.mode()))
        print("ready", flush=True)  # noqa: T201 - the contract with whoever started it
        await told.wait()
        reflex.stopping = True
        intakes.cancel_scope.cancel()


async def _first_rules(reflex: Reflex, told: trio.Event) -> None:
    """Wait for the first rules, or until told to stop. Raises UserError when they do not come, or can't be used."""
    reflex.rulebook.offer(reflex.rule_files.read())
    with trio.move_on_after(FIRST_RULES_SECONDS) as patience:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when, told, nursery.cancel_scope)
            nursery.start_soon(_refuse_without_helper, reflex.link)
            await reflex.rulebook.first()
            nursery.cancel_scope.cancel()
    if patience.cancelled_caught:
        raise UserError(
            f"the helper did not check the rules within {FIRST_RULES_SECONDS:g} s",
            hint="run `stoop rules check` to see whether they can be loaded",
        )


async def _refuse_without_helper(link: Link) -> None:
    """Without a helper no rules ever come. Raises StartRefused as soon as that is clear."""
    why = await link.hopeless()
    raise StartRefused(
        f"the helper can't be started: {why}",
        where=f"{sys.executable} -m agent.helper",
        hint="see why this command does not run; what it wrote, if anything, stands above",
    )


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _intakes(reflex: Reflex) -> list[tuple[str, Callable[..., Awaitable[Any]]]]:
    intake, desk = reflex.config.intake, reflex.desk
    found: list[tuple[str, Callable[..., Awaitable[Any]]]] = []
    if intake.unix is not None:
        found.append(("unix", UnixIntake(intake.unix.path, intake.unix.mode, intake.unix.allow_uids, desk).serve))
    if intake.http is not None:
        http = intake.http
        found.append(("http", HttpIntake(http.address, http.port, http.token_file or None, http.insecure, desk).serve))
    if intake.file is not None:
        found.append(("file", FileIntake(intake.file.path, Marks(reflex.journal), desk).serve))
    if intake.stdin:
        found.append(("stdin", StdinIntake(0, desk).serve))
    return found


def _shown(bound: object) -> str:
    """Where an intake listens, as `status` shows it: a path or address:port."""
    if isinstance(bound, tuple):
        address, port = bound
        return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
    return str(bound)


async def _heed(signals: Any, reflex: Reflex, told: trio.Event) -> None:
    """From the start on: a helper that hangs must not keep the agent from ending."""
    async for number in signals:
        if number == signal.SIGHUP:
            reflex.reload()
        elif not told.is_set():
            reflex.say("info", "told to stop", signal=signal.Signals(number).name)
            told.set()


async def _tick(reflex: Reflex) -> None:
    """What has no event of its own. The watchdog ends the program when this loop no longer comes round."""
    ticks, assured = 0, False
    while True:
        if ticks % WATCHDOG_TICKS == 0 or not assured:
            assured = _assure_watchdog()
        ticks += 1
        reflex.tick()
        await trio.sleep(TICK_SECONDS)


def _assure_watchdog() -> bool:
    """Whether it waits anew. Without a thread to be had (a fork bomb on the node) there is none until the next tick."""
    try:
        faulthandler.dump_traceback_later(WATCHDOG_SECONDS, exit=True)
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
