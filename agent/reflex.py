"""The reflex: root's rights, no network but its intakes, nothing slow. One object that holds the parts together.

What is started when is `agent/app.py`'s; what each part does is its own. This is the wiring, and what a person can ask.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from agent.again import may_be_tried_again
from agent.control import Followers
from agent.front import Front
from agent.link import Link
from agent.node.host import LinuxHost
from agent.own import Own
from agent.reach import Reach
from agent.rehearsal import rehearse
from agent.resume import resume
from agent.rulebook import Rulebook
from stoop import __version__, guard
from stoop.catalogue import CATALOGUE
from stoop.config import Config, policy_of
from stoop.control import EVERY_RULE, Active, AnyRequest, Arm, ControlError, Extend, Reload, SetMode, Status, Undo
from stoop.engine import Memory
from stoop.giveback import GiveBack
from stoop.hold_files import HoldFiles
from stoop.holdings import Holdings
from stoop.holds import shown
from stoop.intake.sink import Desk
from stoop.journal import Journal, Recovery
from stoop.judge import Judge
from stoop.log import line_json
from stoop.metrics import Metrics
from stoop.parts import Parts
from stoop.record import Record
from stoop.recorder import Recorder
from stoop.respond import Responder
from stoop.rulefiles import Reading, RuleFiles
from stoop.rules import RuleSet
from stoop.skew import Skew
from stoop.spec import (
    Mode,
    Verdict,
)
from stoop.switches import Switches
from stoop.wire import AnyMessage, Hello, LogLine, Recorded, Serving, SnapshotAsk, SnapshotReply

COLLECT = (10_000, 20, 100)
"""Thresholds of the collector (gc.set_threshold): little is left for it, and each look costs the way to an act."""


SYNC_SECONDS = 2.0
"""How long a person waits for the disk before his answer: some ms as a rule, below the 5 s that the command waits."""


class Marks:
    """The journal as the file intake's `Marks`."""

    def __init__(self, journal: Journal) -> None:
        self.load = journal.load_mark
        self.commit = journal.put_mark


class SystemClocks:
    """CLOCK_REALTIME and CLOCK_MONOTONIC (clock_gettime(2))."""

    now_ns = staticmethod(time.time_ns)
    mono_ns = staticmethod(time.monotonic_ns)


class Reflex:
    """Everything of the fast path, wired. The constructor opens nothing and starts nothing."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.clocks = SystemClocks()
        self.started_mono_ns = self.clocks.mono_ns()
        self.metrics = Metrics()
        self.followers = Followers()
        self.journal = Journal(
            config.state_dir,
            max_age_s=config.journal.max_age_ns / 1e9,
            max_bytes=config.journal.max_bytes,
            warn=self._warn_from_thread,
        )
        self._token: trio.lowlevel.TrioToken | None = None
        self._early: list[tuple[str, dict[str, object]]] = []
        self.recovery: Recovery | None = None
        self._unknown: tuple[Record, ...] = ()
        self.link = Link(self._from_helper, self._helper_started)
        self.host = LinuxHost()
        self.own = Own(self.host, self.host.boot_id)
        self.switches = Switches(Path(config.state_dir), config.mode, self.warn)
        policy = policy_of(config.guard)
        self.keeps = guard.Guard(policy, guard.Limits(policy, {}), Skew())
        self.judge = Judge(
            host=self.host,
            host_facts=lambda: self.own.facts,
            catalogue=CATALOGUE,
            keeps=self.keeps,
            disarmed=self._rule_disarmed,
        )
        self.recorder = recorder = Recorder(
            self.journal, self.metrics, self.mode, (self.followers.put, self._tell_helper)
        )
        self.memory = Memory(config.guard.dedup_window_ns)
        self.holdings = Holdings(HoldFiles(Path(config.state_dir)), self.clocks, self.host.boot_id, self.say)
        self.giveback = GiveBack(self.holdings, CATALOGUE, self.host, recorder, self.clocks, self.say)
        self.responder = Responder(
            Parts(
                node=config.node_name,
                host=self.host,
                judge=self.judge,
                memory=self.memory,
                recorder=recorder,
                holdings=self.holdings,
                clocks=self.clocks,
                mode=self.mode,
                act_deadline_s=config.guard.act_deadline_ns / 1e9,
            )
        )
        self.front = Front(self.responder, self.metrics, self.own, self.say, self.clocks.mono_ns, self.look_at_clock)
        self.front.show_all = config.print_all_events
        self.desk = Desk(self.front, self.clocks.now_ns, self.warn)
        self.rulebook = Rulebook(self.link.send, self._use, self.say, self.metrics, self.clocks.now_ns)
        self.rule_files = RuleFiles(config.rules_files, use_inotify=config.watch_rules)
        for action in (name for name, action in CATALOGUE.actions.items() if action.begin is not None):
            for verdict in Verdict:
                # There from the start with 0, or an alert rule on the first failure sees no increase.
                self.metrics.inc("acts_total", (action, str(verdict)), 0)
        self.bound: dict[str, str] = {}
        self.reach = Reach(self.say)
        self.serving: Serving | None = None
        self.stopping = False

    # ------------------------------------------------------------ words

    def say(self, level: str, event: str, **fields: Any) -> None:
        """A log line: a constant message and keys. The helper writes it; nothing here waits for a terminal."""
        self.link.send(LogLine(level, event, self.clocks.now_ns(), fields))

    def warn(self, event: str, **fields: object) -> None:
        """A log line that somebody should read."""
        self.say("warning", event, **fields)

    def _warn_from_thread(self, event: str, **fields: object) -> None:
        """For the journal's thread: before the loop runs it is kept, after it it goes to standard error."""
        if self._token is None:
            self._early.append((event, fields))
            return
        try:
            self._token.run_sync_soon(partial(self.warn, event, **fields))
        except trio.RunFinishedError:
            sys.stderr.write(line_json("warning", event, self.clocks.now_ns(), fields) + "\n")

    def enter_loop(self) -> None:
        """The loop runs now: what was to be said before is said."""
        self._token = trio.lowlevel.current_trio_token()
        for event, fields in self._early:
            self.warn(event, **fields)

    def mode(self) -> Mode:
        """The mode in force now."""
        return self.switches.mode(self.clocks.now_ns())

    def _tell_helper(self, record: Record) -> None:
        self.link.send(Recorded(record))

    # ------------------------------------------------------------ start

    def recover(self, recovery: Recovery) -> None:
        """What an earlier life left: never done twice, and said."""
        self.recovery, self._unknown = recovery, recovery.unknown
        self.switches.load()
        self.keeps.limits.disarmed.update(self.switches.disarmed)
        self.memory.restore(recovery.recent_acts, self.clocks.mono_ns())
        for note in recovery.notes:
            self.warn("the journal was put in order", note=note)
        for record in recovery.unfinished:
            self.say("error", "an act was under way when the agent last ended", **record.public())
        self.giveback.recover()
        for line in resume(self.host, recovery.unfinished):
            self.warn("what the last agent held still goes on", what=line)
        if recovery.window is not None:
            self.say(
                "error",
                "the agent ended without stopping: alerts may be lost, and what lay unread in its sockets",
                **msgspec.structs.asdict(recovery.window),
            )

    def settle_memory(self) -> None:
        """At the end of the start: rehearse, then let the collector never look again at what is there now."""
        self.reach.look(self.bound.get("unix"))
        rehearse(self.host, self.own.facts, self.keeps.policy, self.clocks, self.link.pid or os.getpid())
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT)

    def _use(self, rules: RuleSet) -> RuleSet:
        """Swap the rules; the collector never looks at the new ones, as at all that was there at the start."""
        old = self.responder.use(rules)
        unknown, self._unknown = self._unknown, ()
        if unknown:
            again = may_be_tried_again(unknown, (rule.form for rule in rules.rules), CATALOGUE)
            self.memory.let_again(record.act for record in again)
            self.recorder.expect_again(again)
        gc.freeze()
        return old

    def greet(self) -> None:
        """The first frames to a new helper."""
        metrics = self.config.metrics
        self.link.send(
            Hello(
                self.config.node_name,
                metrics.address if metrics is not None else "",
                metrics.port if metrics is not None else 0,
                str(self.config.log_format),
                __version__,
            )
        )
        self.rulebook.ask_again()

    def _rule_disarmed(self, rule: str, reason: str) -> None:
        if self.switches.disarmed.get(rule) == reason:
            return
        self.switches.disarm(rule, reason)
        self.say("critical", "a rule disarmed itself", rule=rule, reason=reason, hint="look, then `stoop arm`")

    # ------------------------------------------------------------ the helper

    def _helper_started(self, pid: int) -> None:
        self.own.helper(pid)
        if not pid:
            self.serving = None

    def _from_helper(self, message: AnyMessage) -> None:
        if self.rulebook.take(message):
            return
        if isinstance(message, SnapshotAsk):
            ready, detail = self.ready()
            self.link.send(SnapshotReply(message.id, self.samples(), ready, detail))
        elif isinstance(message, Serving):
            self.serving = message
            if message.error:
                self.warn("metrics and health are not served", error=message.error)

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether the agent can do its work, and in detail."""
        rules = self.rulebook.in_force
        waiting = sorted(set(self.wanted()) - set(self.bound))
        unreachable = self.reach.lost
        detail: dict[str, Any] = {
            "rules": {"count": rules.count, "digest": rules.digest, "rejected": rules.rejected},
            "intakes": self.bound,
        }
        if waiting:
            detail["not_listening"] = waiting
        if unreachable:
            detail["out_of_reach"] = unreachable
        return bool(rules.digest) and not waiting and not unreachable and not self.stopping, detail

    def wanted(self) -> list[str]:
        """The intakes that the configuration turns on."""
        intake = self.config.intake
        on = {"unix": intake.unix, "http": intake.http, "file": intake.file, "stdin": intake.stdin}
        return [name for name, wanted in on.items() if wanted]

    def samples(self) -> dict[str, list[tuple[tuple[str, ...], Any]]]:
        """The counters of now, with the gauges that are looked up only when somebody asks."""
        metrics, skew, journal = self.metrics, self.keeps.skew, self.journal.status()
        load = self.responder.load()
        metrics.set("queue_length", (), load["queued"] + load["waiting"])
        metrics.set("feed_silence_seconds", (), (self.clocks.mono_ns() - self.front.last_alert_mono_ns) / 1e9)
        metrics.set("clock_offset_seconds", (), -skew.drift_ns / 1e9)
        metrics.set("journal_lag_records", (), journal.lag)
        metrics.clear("holds")
        for action, count in Counter(hold.actionner for hold in self.holdings.table).items():
            metrics.set("holds", (action,), count)
        metrics.set("holds_troubled", (), len(self.giveback.troubles()))
        metrics.set("disarmed_rules", (), len(self.keeps.limits.disarmed))
        for name in ("rule_disarmed", "mode", "intake_up", "connections"):
            metrics.clear(name)
        for rule in self.keeps.limits.disarmed:
            metrics.set("rule_disarmed", (rule,), 1)
        metrics.set("mode", (str(self.mode()),), 1)
        for name in self.wanted():
            metrics.set("intake_up", (name,), 1 if name in self.bound and name not in self.reach.lost else 0)
        for name, count in self.front.connections.items():
            metrics.set("connections", (name,), count)
        samples = metrics.samples()
        samples["journal_lost_total"] = [((), journal.lost)]
        samples["clock_steps_total"] = [((), skew.steps)]
        samples["helper_restarts_total"] = [((), max(0, self.link.restarts))]
        samples["log_lines_dropped_total"] = [(("reflex",), self.link.dropped)]
        return samples

    # ------------------------------------------------------------ what a person asks

    async def answer(self, request: AnyRequest) -> Any:
        """The result of a request on the control socket. Raises UserError."""
        if isinstance(request, Status):
            return self.status()
        if isinstance(request, SetMode):
            result = self._set_mode(request)
            return result | {"synced": result["kept"] and await self._synced()}
        if isinstance(request, Arm):
            result = self._arm(request.rule)
            await self._synced()
            return result
        if isinstance(request, Reload):
            self.reload()
            return {"asked": True}
        if isinstance(request, Active):
            return shown(self.holdings.table, self.clocks.mono_ns(), self.giveback.troubles())
        if isinstance(request, Undo):
            return await self.giveback.undo(request.name)
        if isinstance(request, Extend):
            held = self.giveback.extend(request.name, int(request.for_s * 1e9))
            return shown(held, self.clocks.mono_ns(), self.giveback.troubles())
        raise ControlError("that can't be asked here")

    async def _synced(self) -> bool:
        """What was switched holds already; wait until it outlives a power cut too, but not for ever."""
        why = f"the disk did not take it within {SYNC_SECONDS:g} s"
        with trio.move_on_after(SYNC_SECONDS):
            why = await trio.to_thread.run_sync(self.switches.sync, abandon_on_cancel=True)
        if why:
            self.warn("a switch may not outlive a power cut", error=why)
        return not why

    def look_at_clock(self) -> None:
        """Notice a step of the node's clock, and say it. Two clocks are read: some 0.3 µs."""
        offset_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if self.keeps.skew.clock(offset_ns):
            self.warn("the node's clock was stepped: Falco's offset is estimated anew")

    def tick(self) -> None:
        """About once a second: what has no event of its own."""
        self.look_at_clock()
        self.reach.look(self.bound.get("unix"))
        self.responder.tell_repeats()
        self.rulebook.dispose()
        self.own.look_again()
        self.mode()

    def rules_changed(self, reading: Reading) -> None:
        """The rules files changed and have settled, or are not fit to be used."""
        if reading.problem:
            self.rulebook.reject(reading.problem)
        else:
            self.rulebook.offer(reading.files)

    def reload(self) -> None:
        """Have the rules files read again, changed or not."""
        self.rule_files.reload()

    def _set_mode(self, request: SetMode) -> dict[str, Any]:
        was = self.mode()
        until_ns = self.clocks.now_ns() + int(request.for_s * 1e9) if request.for_s is not None else 0
        kept = self.switches.switch(request.mode, until_ns)
        self.memory.forget_targets()  # what was only watched until now is no repeat
        self.say("warning", "the mode was switched", was=str(was), now=str(request.mode), for_s=request.for_s)
        return {"was": str(was), "mode": str(request.mode), "until_ns": until_ns, "kept": kept}

    def _arm(self, rule: str) -> dict[str, Any]:
        limits = self.keeps.limits
        rules = list(limits.disarmed) if rule == EVERY_RULE else [rule]
        armed = [name for name in rules if limits.arm(name)]
        if not armed and rule != EVERY_RULE:
            raise ControlError(f"rule {rule!r} is not disarmed", hint="`stoop status` lists those that are")
        self.memory.forget_targets()  # what it would have done meanwhile is no repeat
        for name in armed:
            self.switches.arm(name)
            self.say("warning", "a rule was armed again", rule=name)
        return {"armed": armed}

    def status(self) -> dict[str, Any]:
        """The result of `stoop status --json`."""
        rules, skew, journal = self.rulebook.in_force, self.keeps.skew, self.journal.status()
        serving, mono_ns = self.serving, self.clocks.mono_ns()
        ready, _ = self.ready()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "node": self.config.node_name,
            "mode": str(self.mode()),
            "mode_until_ns": self.switches.until_ns,
            "ready": ready,
            "uptime_s": (mono_ns - self.started_mono_ns) / 1e9,
            "intakes": self.bound,
            "out_of_reach": self.reach.lost,
            "metrics": {"address": serving.address, "port": serving.port} if serving is not None else None,
            "control": self.config.control.path,
            "state_dir": self.config.state_dir,
            "rules": {
                "count": rules.count,
                "digest": rules.digest,
                "loaded_at_ns": rules.loaded_ns,
                "last_error": rules.rejected,
            },
            "disarmed": self.keeps.limits.disarmed,
            "queue": self.responder.load(),
            "holds": {"count": len(self.holdings.table), "trouble": self.giveback.troubles()},
            "feed": {
                "silence_s": (mono_ns - self.front.last_alert_mono_ns) / 1e9,
                "peers": {kind: count for kind, count in self.front.connections.items() if count},
            },
            "clock": {"offset_ms": -skew.drift_ns / 1e6, "established": skew.established, "steps": skew.steps},
            "journal": {"lag": journal.lag, "lost": journal.lost, "error": journal.error},
            "recovery": _recovery(self.recovery),
            "helper": {"pid": self.link.pid, "restarts": max(0, self.link.restarts)},
            "counts": {
                "received": self.front.received,
                "refused": self.front.refused,
                "matched": sum(self.metrics.by("alerts_matched_total", 0).values()),
                "outcomes": self.metrics.by("acts_total", 1),
            },
        }


def _recovery(recovery: Recovery | None) -> dict[str, Any] | None:
    if recovery is None:
        return None
    window = msgspec.structs.asdict(recovery.window) if recovery.window is not None else None
    return {"clean": recovery.clean, "unfinished": len(recovery.unfinished), "window": window}
