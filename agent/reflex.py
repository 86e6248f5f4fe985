"""The reflex: root's rights, no network but its intakes, nothing slow. One object that holds the parts together.

What is started when is `agent/app.py`'s; what each part does is its own. This is the wiring, and what a person can ask.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from agent.again import may_be_tried_again
from agent.clocks import SystemClocks
from agent.condition import ready, samples
from agent.control import Followers
from agent.deliveries import Deliveries
from agent.evidence import Evidence
from agent.fitness import Fitness
from agent.front import Front
from agent.link import Link
from agent.names import Names
from agent.node.host import LinuxHost
from agent.node.network_soon import NetworkSoon
from agent.own import Own
from agent.programs import SYSDIG_ACT
from agent.reach import Reach
from agent.rehearsal import rehearse
from agent.restarts import Restarts
from agent.resume import resume
from agent.rulebook import Rulebook
from agent.vitals import Body, Vitals
from stoop import __version__, guard
from stoop.catalogue import CATALOGUE
from stoop.config import Config, PodsFrom, policy_of
from stoop.engine import Memory
from stoop.evidence_first import First
from stoop.giveback import GiveBack
from stoop.hold_files import hold_files
from stoop.holdings import Holdings
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
from stoop.rules import RuleForm, RuleSet
from stoop.skew import Skew
from stoop.spec import (
    Mode,
    OutputUse,
    Scope,
    Verdict,
)
from stoop.switches import Switches
from stoop.wire import AnyMessage, Hello, LogLine, Recorded, Serving, SnapshotAsk, SnapshotReply

COLLECT = (10_000, 20, 100)
"""Thresholds of the collector (gc.set_threshold): little is left for it, and each look costs the way to an act."""


NETWORK = "network:"
"""The category of the actions that need the network hands."""


FILE = "file:"
"""The category of the actions whose holds need their bundles."""


def ends_may_destroy(actionner: str) -> bool:
    """Whether what this act holds may be destroyed when its time is over."""
    action = CATALOGUE.actions.get(actionner)
    return action is not None and action.at_end_destroys is not None


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
        self.names = Names(config.pods, config.node_name, self._send, self.say, self.clocks.mono_ns)
        self.link = Link(self._from_helper, self._helper_started, self.names.extras)
        self.host = LinuxHost(reference_pid=config.guard.reference_pid)
        self.host.join_pod = self.names.join
        self.own = Own(self.host, self.host.boot_id, config.guard.reference_pid)
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
            self.journal, self.metrics, self.mode, (self.followers.put, self._tell_helper, self._note_end)
        )
        self.restarts = Restarts(self.host, recorder, self.clocks, self.say)
        self.memory = Memory(config.guard.dedup_window_ns)
        self.holdings = Holdings(hold_files(Path(config.state_dir)), self.clocks, self.host.boot_id, self.say)
        self._first = First(config.evidence_first, config.evidence_deadline_ns / 1e9)
        self.giveback = GiveBack(self.holdings, CATALOGUE, self.host, recorder, self.clocks, self.say, self._first)
        self.responder = self._make_responder(config)
        self.front = Front(self.responder, self.metrics, self.own, self.say, self.clocks.mono_ns, self.look_at_clock)
        self.front.show_all = config.print_all_events
        self.vitals = Vitals(config, Body(self.front, self.own, self.keeps.skew, recorder, self.clocks, self.say))
        self.desk = Desk(self.front, self.clocks.now_ns, self.warn)
        self.rulebook = Rulebook(self.link.send, self._use, self.say, self.metrics, self.clocks.now_ns)
        self.rule_files = RuleFiles(config.rules_files, use_inotify=config.watch_rules)
        for action in (name for name, action in CATALOGUE.actions.items() if action.begin is not None):
            for verdict in Verdict:
                # There from the start with 0, or an alert rule on the first failure sees no increase.
                self.metrics.inc("acts_total", (action, str(verdict)), 0)
        self.network = NetworkSoon()
        acting = [name for name, action in CATALOGUE.actions.items() if action.begin is not None]
        self.deliveries = Deliveries(config, recorder, self.clocks, self.say, self.own.courier)
        self.fitness = Fitness(self._unavailable, [*acting, *CATALOGUE.outputs], self.warn)
        self.deliveries.told = self.fitness.tell
        self._network_wanted = trio.Event()
        self._evidence_wanted = trio.Event()
        self._output_wanted = trio.Event()
        self.evidence = Evidence(config, self.host, self.host.boot_id, self.own.workers, self.warn, self._tell_fitness)
        self.bound: dict[str, str] = {}
        self.deliveries.run = self.evidence.workers.run
        self.reach = Reach(self.say)
        self.serving: Serving | None = None
        self.stopping = False

    def _make_responder(self, config: Config) -> Responder:
        return Responder(
            Parts(
                node=config.node_name,
                host=self.host,
                judge=self.judge,
                memory=self.memory,
                recorder=self.recorder,
                holdings=self.holdings,
                clocks=self.clocks,
                mode=self.mode,
                act_deadline_s=config.guard.act_deadline_ns / 1e9,
                first=self._first,
            )
        )

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

    def _send(self, message: AnyMessage) -> bool:
        return self.link.send(message)

    def _tell_helper(self, record: Record) -> None:
        self.link.send(Recorded(record))

    def _note_end(self, record: Record) -> None:
        self.restarts.put(record)

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
        self.deliveries.recover()
        self._want_network(hold.actionner for hold in self.holdings.table)
        may_destroy = any(hold.evidence_first and ends_may_destroy(hold.actionner) for hold in self.holdings.table)
        if may_destroy or any(True for _ in self._files_held()):
            self._start_evidence()
        for line in resume(self.host, recovery.unfinished, self.holdings.table):
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

    async def serve_network(self) -> None:
        """From the first rule or hold on that is about the network of pods: two processes more, for that alone."""
        await self._network_wanted.wait()
        await self.network.serve(
            self.config.guard.reference_pid,
            self._network_unavailable,
        )

    def _unavailable(self) -> dict[str, str]:
        return self.host.unavailable() | self.evidence.unavailable() | self.deliveries.unavailable()

    def _tell_fitness(self) -> None:
        self.fitness.tell()

    def _network_unavailable(self, reason: str) -> None:
        self.warn("the networks of pods can't be acted on", reason=reason)
        self.fitness.tell()

    def _want_network(self, actionners: Iterable[str]) -> None:
        if any(actionner.startswith(NETWORK) for actionner in actionners):
            self.host.network = self.network
            self._network_wanted.set()

    async def serve_evidence(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """From the first rule or hold on that takes evidence: a process more, and one for each that is taken.

        Started as soon as evidence can be asked for, if it is wanted now: a hold's end may be due already.
        """
        if self._evidence_wanted.is_set():
            await self._serve_evidence(task_status)
        else:
            task_status.started()
            await self._evidence_wanted.wait()
            await self._serve_evidence()

    async def _serve_evidence(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.evidence.serve)
            task_status.started()
            # From the first rule with an output on, or where an earlier life left something to be sent.
            await self._output_wanted.wait()
            nursery.start_soon(self.deliveries.serve)

    def _takes_evidence(self, form: RuleForm) -> bool:
        """Whether a rule ever needs workers: by its actions, or before them."""
        specs = [CATALOGUE.actions[step.actionner].spec for step in form.actions]
        destroys = any((spec.destroys or ends_may_destroy(spec.name)) and spec.scope is Scope.NODE for spec in specs)
        first = self._first.applies(form) and destroys
        return first or any(spec.scope is Scope.NODE and spec.output is not OutputUse.NONE for spec in specs)

    def _want_evidence(self, rules: RuleSet) -> None:
        self.deliveries.use(rules)
        if self.deliveries.wanted:
            self._output_wanted.set()
        if self.deliveries.wanted or any(self._takes_evidence(rule.form) for rule in rules.rules):
            self._start_evidence()
        if any(step.actionner == SYSDIG_ACT for rule in rules.rules for step in rule.form.actions):
            self.evidence.want_sysdig()

    def _start_evidence(self) -> None:
        self.evidence.held = self._files_held
        self.host.capture = self.evidence
        self._evidence_wanted.set()

    def _files_held(self) -> Iterator[str]:
        return (hold.act for hold in self.holdings.table if hold.actionner.startswith(FILE))

    def _use(self, rules: RuleSet) -> RuleSet:
        """Swap the rules; the collector never looks at the new ones, as at all that was there at the start."""
        old = self.responder.use(rules)
        self._want_network(step.actionner for rule in rules.rules for step in rule.form.actions)
        self._want_evidence(rules)
        self.fitness.use(rules)
        self.names.use(rules)
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
                self.config.pods.source is not PodsFrom.NONE,
            )
        )
        self.names.greet()
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
        if self.rulebook.take(message) or self.names.take(message):
            return
        if isinstance(message, SnapshotAsk):
            is_ready, detail = ready(self)
            self.link.send(SnapshotReply(message.id, samples(self), is_ready, detail))
        elif isinstance(message, Serving):
            self.serving = message
            if message.error:
                self.warn("metrics and health are not served", error=message.error)

    # ------------------------------------------------------------ while it runs

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
        self.names.tell_undecided(self.recorder)
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
